-- Posts each line of a file once, in order and round again, and times one round of answers:
-- `wrk -t1 ... -s work_through.lua URL -- BODIES_FILE WARMUP`.
-- The clock starts at answer number WARMUP and stops one round later, when as many requests are
-- under way as at the start; wrk then ends at once, whatever its -d says.

local ffi = require("ffi")
ffi.cdef [[
typedef struct { long sec; long nsec; } bench_timespec;
int clock_gettime(int clock, bench_timespec *now);
]]
local CLOCK_MONOTONIC = 1
local now = ffi.new("bench_timespec")

local function seconds()
  ffi.C.clock_gettime(CLOCK_MONOTONIC, now)
  return tonumber(now.sec) + tonumber(now.nsec) / 1e9
end

local requests, sent, answers, warmup, errors, started = {}, 0, 0, 0, 0, 0

function init(args)
  wrk.headers["Content-Type"] = "application/json"
  for line in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, nil, line)
  end
  warmup = tonumber(args[2])
end

function request()
  sent = sent % #requests + 1
  return requests[sent]
end

function response(status)
  answers = answers + 1
  if status ~= 200 then
    errors = errors + 1
  end
  if answers == warmup then
    started = seconds()
  elseif answers == warmup + #requests then
    io.write(string.format('\nRESULT {"seconds": %.6f, "errors": %d}\n', seconds() - started, errors))
    io.flush()
    os.exit(0)
  end
end
