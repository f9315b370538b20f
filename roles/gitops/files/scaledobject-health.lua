-- A ScaledObject is healthy if KEDA can work with it. Argo CD's own script asks more. With that script, a sync that
-- prunes waits as long as the pool is paused, and fails as long as the pool's source of demand is lost.
local health = {status = "Progressing", message = "KEDA has not looked at it yet"}
for _, condition in ipairs((obj.status or {}).conditions or {}) do
  if condition.type == "Ready" and condition.status ~= "Unknown" then
    health.status = condition.status == "True" and "Healthy" or "Degraded"
    health.message = condition.message
  end
end
return health
