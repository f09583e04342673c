-- Registers a new user with every request, and prints one line of JSON at the end.
-- The argument goes before each username, so that no two runs share one.

local threads = 0

function setup(thread)
   threads = threads + 1
   thread:set("number", threads)
end

function init(args)
   prefix = args[1] .. "t" .. number .. "n"
   sent = 0
   wrk.method = "POST"
   wrk.headers["Content-Type"] = "application/json"
end

function request()
   sent = sent + 1
   local username = prefix .. sent
   return wrk.format(nil, nil, nil, '{"username": "' .. username .. '", "email": "' .. username .. '@example.com"}')
end

function done(summary, latency)
   local errors = summary.errors
   print(string.format(
      '{"answers": %d, "failures": %d, "rate": %f, "p50": %f, "p99": %f}',
      summary.requests,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout,
      summary.requests / summary.duration * 1e6,
      latency:percentile(50) / 1e3,
      latency:percentile(99) / 1e3
   ))
end
