-- Sends one kind of request over and over, and prints one line of JSON at the end.
-- Arguments: the kind; what goes before each username, so that no two runs share one; how many accounts there are;
-- whether account 1 gets all money.

local threads = 0
local bodies = {}

function setup(thread)
   threads = threads + 1
   thread:set("number", threads)
end

function init(args)
   kind, prefix, accounts, hot = args[1], args[2] .. "t" .. number .. "n", tonumber(args[3]), args[4] == "true"
   sent = 0
   -- Otherwise each thread would draw the same accounts.
   math.randomseed(os.time() * 100 + number)
   wrk.method = "POST"
   wrk.headers["Content-Type"] = "application/json"
end

function request()
   return wrk.format(nil, nil, nil, bodies[kind]())
end

function bodies.register()
   sent = sent + 1
   local username = prefix .. sent
   return string.format('{"username": "%s", "email": "%s@example.com"}', username, username)
end

function bodies.transfer()
   local debit = math.random(hot and 2 or 1, accounts)
   local credit = hot and 1 or (debit + math.random(0, accounts - 2)) % accounts + 1
   wrk.headers["Authorization"] = "Bearer svp_bench_" .. debit
   return string.format('{"debit_account_id": %d, "credit_account_id": %d, "amount": 1}', debit, credit)
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
