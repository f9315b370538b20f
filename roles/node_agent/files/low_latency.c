// Switches Nagle's algorithm off on the connections that NativeLink's ports accept: 50051 (CAS), 50052 (shards of the
// CAS, scheduler) and 50061 (worker API). The kernel runs it at the events of each TCP connection of a cgroup.
#include <linux/bpf.h>

#define SECTION(name) __attribute__((section(name), used))

static long (*setsockopt)(struct bpf_sock_ops *, int, int, void *, int) = (void *)BPF_FUNC_setsockopt;

SECTION("sockops") int nl_sock_ops(struct bpf_sock_ops *connection)
{
	int on = 1;
	int port = connection->local_port;

	if (connection->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && (port == 50051 || port == 50052 || port == 50061))
		setsockopt(connection, 6 /* IPPROTO_TCP */, 1 /* TCP_NODELAY */, &on, sizeof(on));
	return 1; // let it be
}

SECTION("license") char license_of_this[] = "Apache-2.0";
