"""The ports of all pods of a tree."""

PORTS = {
    "cas": 50051,  # cas, ac, bytestream and capabilities for clients
    "slice": 50052,  # a CAS pod's own shard, for the other CAS pods, the scheduler and the workers
    "writers": 50053,  # a CAS pod's own shard of the action results, where workers write them
    "client_writers": 50054,  # as cas, but for the clients that may write action results
    "scheduler": 50052,  # execution and capabilities for clients
    "worker_api": 50061,  # workers only
    "health": 50080,  # /status of each NativeLink process: plain, whatever the other listeners become
    "redis": 6379,
    "metrics": 9464,  # the demand of a scheduler in memory
    "reported": 9465,  # all else that NativeLink reports
    "collector_health": 13133,
    "demand": 9121,
    "prometheus": 9090,
}
