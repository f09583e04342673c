-- Sends one kind of request over and over, and prints one line of JSON at the end.
-- Arguments: the kind; what goes before each username, so that no two runs share one; how many accounts there are;
-- whether account 1 gets all money; for how many milliseconds a connection pauses after an answer. The environment
-- variable PORTS has a port for each thread.

local threads = 0
local kinds = {}
local ports = string.gmatch(os.getenv("PORTS"), "%d+")

function setup(thread)
   threads = threads + 1
   thread:set("number", threads)
   thread.addr = wrk.lookup(wrk.host, ports())[1]
end

function init(args)
   kind, prefix, accounts, hot = args[1], args[2] .. "t" .. number .. "n", tonumber(args[3]), args[4] == "true"
   sent = 0
   local pause = tonumber(args[5])
   if pause > 0 then
      delay = function() return pause end
   end
   -- Otherwise each thread would draw the same accounts.
   math.randomseed(os.time() * 100 + number)
end

function request()
   return kinds[kind]()
end

local function post(path, ...)
   wrk.headers["Content-Type"] = "application/json"
   return wrk.format("POST", path, nil, string.format(...))
end

-- User and account have the same number.
local function act_as(user)
   wrk.headers["Authorization"] = "Bearer svp_bench_" .. user
   return user
end

function kinds.register()
   sent = sent + 1
   local username = prefix .. sent
   return post("/register", '{"username": "%s", "email": "%s@example.com"}', username, username)
end

function kinds.transfer()
   local debit = act_as(math.random(hot and 2 or 1, accounts))
   local credit = hot and 1 or (debit + math.random(0, accounts - 2)) % accounts + 1
   return post("/transfers", '{"debit_account_id": %d, "credit_account_id": %d, "amount": 1}', debit, credit)
end

function kinds.me()
   act_as(math.random(accounts))
   return wrk.format("GET", "/me")
end

function kinds.statement()
   return wrk.format("GET", "/accounts/" .. act_as(math.random(accounts)) .. "/entries")
end

function done(summary, latency)
   local errors = summary.errors
   local answers = summary.requests - errors.status
   print(string.format(
      '{"answers": %d, "failures": %d, "rate": %f, "p50": %f, "p99": %f}',
      answers,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout,
      answers / summary.duration * 1e6,
      latency:percentile(50) / 1e3,
      latency:percentile(99) / 1e3
   ))
end
