// Refuses users of actions (20000 to 28191) each connection to the ports that NativeLink keeps for itself: 50053 (writers
// of action results) and 50061 (worker API). The kernel runs it whenever a process of a cgroup connects a socket, and
// the process gets EPERM. That includes MPTCP, TCP Fast Open, and IPv4 through an IPv6 socket.
#include <linux/bpf.h>

#define SECTION(name) __attribute__((section(name), used))

static __u64 (*get_current_uid_gid)(void) = (void *)BPF_FUNC_get_current_uid_gid;

static inline int may_connect(struct bpf_sock_addr *target)
{
	__u16 port = __builtin_bswap16(target->user_port); // in the network's byte order
	__u32 user = (__u32)get_current_uid_gid() & 0xffff; // a user namespace shifts users by a multiple of 65,536

	return !((port == 50053 || port == 50061) && user >= 20000 && user < 28192);
}

SECTION("cgroup/connect4") int nl_connect4(struct bpf_sock_addr *target)
{
	return may_connect(target);
}

SECTION("cgroup/connect6") int nl_connect6(struct bpf_sock_addr *target)
{
	return may_connect(target);
}

SECTION("license") char license_of_this[] = "Apache-2.0";
