<?php
// Calls the service of samples/expose_existing through the relay, with PHP's SoapClient.
//
//     SAS="$(wcfrelay token orders)" php samples/call.php https://localhost:8443/orders
//
// The CA file comes from WCFRELAY_CA_FILE (see README.md). The extension soap is needed (Debian: php-soap).

$url = $argv[1];
$context = stream_context_create([
    'http' => ['header' => 'ServiceBusAuthorization: ' . getenv('SAS')],
    'ssl' => ['cafile' => getenv('WCFRELAY_CA_FILE')],
]);
$client = new SoapClient("$url?wsdl", ['stream_context' => $context, 'cache_wsdl' => WSDL_CACHE_NONE]);
echo '12 bolts: ', $client->Place(['item' => 'bolt', 'count' => 12])->total, "\n";

try {
    $client->Place(['item' => 'gear', 'count' => 1]);
} catch (SoapFault $fault) {
    echo "1 gear: {$fault->getMessage()}\n";
}
