-- What wrk sends, and how it reports. Body and token come by the environment, so that no process list shows them.

local body = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.method = "POST"
wrk.body = body:read("*a")
body:close()
wrk.headers["Content-Type"] = "text/xml; charset=utf-8"
wrk.headers["SOAPAction"] = '"urn:bench/Call"'
wrk.headers["ServiceBusAuthorization"] = os.getenv("BENCH_TOKEN")

done = function(summary, latency)
   local e = summary.errors
   io.write(string.format(
      '\n{"calls":%d,"seconds":%.6f,"p50":%.0f,"p99":%.0f,"refused":%d,"broken":%d,"late":%d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
      e.status, e.connect + e.read + e.write, e.timeout))
end
