"""Calls the service of samples/host_spyne through the relay, many times at once, on the Twisted reactor.

    python samples/call_twisted.py

The connection string and the CA file come from WCFRELAY_CONNECTION_STRING and WCFRELAY_CA_FILE (see README.md).
"""

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from wcfrelay.sender import async_relay_client


async def main(reactor):
    async with await async_relay_client("calculator", reactor=reactor) as client:
        begun = reactor.seconds()
        calls = [Deferred.fromCoroutine(client.service.AddLater(a=n, b=n)) for n in range(20)]
        sums = await gatherResults(calls)
        print(f"{len(sums)} calls of 0.2 s each, together in {reactor.seconds() - begun:.1f} s: {sums[:3]} …")


react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
