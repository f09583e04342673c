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
   -- wrk reads bodies only where there is such a function.
   if kind ~= "hold" then
      response = nil
   end
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

local function between_two()
   local debit = act_as(math.random(hot and 2 or 1, accounts))
   local credit = hot and 1 or (debit + math.random(0, accounts - 2)) % accounts + 1
   return string.format('{"debit_account_id": %d, "credit_account_id": %d, "amount": 1}', debit, credit)
end

function kinds.transfer()
   return post("/transfers", between_two())
end

-- Each hold is captured, by its recipient, before the next is made.
local held = {}

function kinds.hold()
   local hold = table.remove(held)
   if hold then
      act_as(hold.recipient)
      return post("/holds/" .. hold.id .. "/capture", "{}")
   end
   return post("/holds", between_two())
end

function response(status, headers, body)
   if kind == "hold" and status == 201 then
      local id, recipient = string.match(body, '^{"id":(%d+),.-"credit_account_id":(%d+),.-"status":"open"')
      if id then
         table.insert(held, {id = id, recipient = recipient})
      end
   end
end

function kinds.linked()
   local first = between_two()
   return post("/transactions", '{"transfers": [%s, %s]}', first, first)
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
