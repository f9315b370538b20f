// Gives each action of a NativeLink worker a user of its own. It runs as root of the worker's container.
//
//   action COMMAND…         NativeLink's entrypoint: runs an action's command, in the action's directory
//   guarded                 fails unless the node refuses the connections of actions to GUARDED ports (role node_agent)
//   prepare [guarded]       checks what is needed, and makes the folders, when a container starts
//   prepare --version       succeeds if the program is for this machine's architecture
//
// These are its names. A request can choose the arguments of the first one, and no name.
//
// An action's directory is ACTIONS/UUID/work, and its commands run in it or below. It is called "action" while they
// run. If NativeLink ends an action (it kills the program that it started, and nothing else), there is no "work", and
// so no output that a process of the action could still change while NativeLink stores it.
#include "system.h"

#define SCRATCH "/scratch"
#define ACTIONS SCRATCH "/actions"
#define USERS SCRATCH "/users"
#define STATE "/drain"

enum {
	FIRST_USER = 20000, // action N runs as user FIRST_USER + N
	FIRST_KILLER = 24096, // and what ends its processes has this user + N meanwhile, whom the action cannot signal
	MOST_ACTIONS = 4096,
	NAME = 36, // of an action: a UUID
	PATH = 4096,
	NOT_RUN = 126,
	NOT_FOUND = 127,
};

#define NEEDED(what) (1u << (what))
static const uint32_t CAPABILITIES = NEEDED(CAP_CHOWN) | NEEDED(CAP_DAC_OVERRIDE) | NEEDED(CAP_FOWNER) |
				     NEEDED(CAP_KILL) | NEEDED(CAP_SETGID) | NEEDED(CAP_SETUID);
static const char *const CAPABILITY_NAMES[] = {"CHOWN", "DAC_OVERRIDE", NULL, "FOWNER", NULL, "KILL", "SETGID", "SETUID"};
// Only workers may write action results (50053), and connect to the worker API (50061).
static const uint16_t GUARDED[] = {50053, 50061};
static const char *const SHARED_FOLDERS[] = {"/tmp", "/var/tmp", "/dev/shm", NULL};

// What an action left behind that NativeLink must not take as an output, or "".
static char refusal[2 * PATH];

static void append(char *text, size_t room, const char *more)
{
	size_t n = length(text);

	while (*more && n + 1 < room)
		text[n++] = *more++;
	text[n] = 0;
}

static char *decimal(long number)
{
	static char text[24];
	char *digit = text + sizeof(text) - 1;
	unsigned long rest = number < 0 ? -number : number;

	do
		*--digit = (char)('0' + rest % 10);
	while (rest /= 10);
	if (number < 0)
		*--digit = '-';
	return digit;
}

#define say(...) say_((const char *[]){"isolation: ", __VA_ARGS__, "\n", NULL})
static void say_(const char *const *parts)
{
	static char line[4 * PATH];

	for (line[0] = 0; *parts; parts++)
		append(line, sizeof(line), *parts);
	call(write, 2, line, length(line));
}

__attribute__((noreturn)) static void quit(int status)
{
	for (;;)
		call(exit_group, status);
}

#define fail(...) (say(__VA_ARGS__), quit(NOT_RUN))

static void must(long result, const char *what, const char *of)
{
	if (result < 0)
		fail(what, of, " fails with error ", decimal(-result));
}

static long fork_process(void)
{
	return call(clone, SIGCHLD);
}

static long look(int folder, const char *name, struct statx *found)
{
	return call(statx, folder, name, AT_SYMLINK_NOFOLLOW | (*name ? 0 : AT_EMPTY_PATH), STATX_BASIC_STATS, found);
}

static int is(const struct statx *found, unsigned kind)
{
	return (found->stx_mode & S_IFMT) == kind;
}

// Opens a folder itself, never what a link in its place leads to.
static long open_folder(int parent, const char *name)
{
	return call(openat, parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

// Calls `each` for all entries of a folder but . and .., until it fails.
static long for_each(int folder, long (*each)(int, const struct entry *, void *), void *with)
{
	char buffer[8192] __attribute__((aligned(8)));
	long size, result = 0;

	while ((size = call(getdents64, folder, buffer, sizeof(buffer))) > 0)
		for (long at = 0; at < size; at += ((struct entry *)(buffer + at))->size) {
			const struct entry *found = (struct entry *)(buffer + at);

			if (same(found->name, ".") || same(found->name, ".."))
				continue;
			if ((result = each(folder, found, with)) < 0)
				return result;
		}
	return size;
}

static int is_folder(int parent, const struct entry *found)
{
	struct statx about;

	return found->type == DT_DIR ||
	       (found->type == DT_UNKNOWN && !look(parent, found->name, &about) && is(&about, S_IFDIR));
}

static long remove_entry(int parent, const struct entry *found, void *with);

static long remove_folder(int parent, const char *name)
{
	long folder = open_folder(parent, name), result = 0;

	if (folder < 0)
		return folder;
	// No action may fill it meanwhile, even if another action was sent a descriptor of it.
	call(fchown, folder, 0, 0);
	call(fchmod, folder, 0700);
	// Reading a folder while it shrinks may skip entries.
	while (result >= 0 && call(unlinkat, parent, name, AT_REMOVEDIR) == -ENOTEMPTY) {
		call(lseek, folder, 0, 0);
		result = for_each((int)folder, remove_entry, NULL);
	}
	call(close, folder);
	return result;
}

// Removes an entry, whatever it is. Where *with is a user, only what is this user's.
static long remove_entry(int parent, const struct entry *found, void *with)
{
	struct statx about;

	if (with && (look(parent, found->name, &about) || about.stx_uid != *(unsigned *)with))
		return 0;
	if (is_folder(parent, found))
		return remove_folder(parent, found->name);
	call(unlinkat, parent, found->name, 0);
	return 0;
}

static void empty(const char *path, unsigned *of)
{
	long folder = open_folder(AT_FDCWD, path);

	if (folder >= 0) {
		for_each((int)folder, remove_entry, of);
		call(close, folder);
	}
}

// --- Users -----------------------------------------------------------------------------------------------------------

// Takes a number that no other action has, and returns it. The lock ends with the processes that inherit it.
static unsigned take_number(int *lock)
{
	for (unsigned number = 0; number < MOST_ACTIONS; number++) {
		char path[64] = USERS "/";

		append(path, sizeof(path), decimal(number));
		append(path, sizeof(path), ".lock");
		*lock = (int)call(openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		must(*lock, "opening ", path);
		if (!call(flock, *lock, LOCK_EX | LOCK_NB))
			return number;
		call(close, *lock);
	}
	fail("all users are taken by running actions");
}

static void become(unsigned user)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2] = {{0}};

	must(call(setgroups, 0, NULL), "dropping ", "groups");
	must(call(setresgid, user, user, user), "taking a ", "group");
	must(call(setresuid, user, user, user), "taking a ", "user");
	must(call(capset, &header, none), "dropping ", "capabilities");
	must(call(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "setting ", "no_new_privs");
}

// Ends all processes of an action's user. None of them can start another one meanwhile, or do anything afterwards. It
// takes no process, because an action may have used up all that the pod may have.
static void end_processes(unsigned number)
{
	// As a user who may signal the action's processes, not those of root, and whom they may not signal.
	must(call(setresuid, FIRST_KILLER + number, FIRST_USER + number, 0), "taking a ", "user");
	call(kill, -1, SIGKILL);
	must(call(setresuid, 0, 0, 0), "being ", "root again");
}

// Waits until all of them are gone, which are children of this process by now (PR_SET_CHILD_SUBREAPER).
static void reap(void)
{
	while (call(wait4, -1, NULL, 0, NULL) != -ECHILD)
		;
}

// --- Before the command ----------------------------------------------------------------------------------------------

static long give_folder(int folder, unsigned user);

static long give_entry(int parent, const struct entry *found, void *user)
{
	if (!is_folder(parent, found))
		return 0;
	long folder = open_folder(parent, found->name);
	long result = folder < 0 ? folder : give_folder((int)folder, *(unsigned *)user);

	call(close, folder);
	return result;
}

// Gives a directory and those below to the action's user. Files stay root's: they are links into the store.
static long give_folder(int folder, unsigned user)
{
	long result = for_each(folder, give_entry, &user);

	if (result >= 0)
		result = call(fchown, folder, user, user);
	return result < 0 ? result : call(fchmod, folder, 0700);
}

// Returns 1 if a path leads to a file that everybody may reach and read, and only root can change where it leads.
static int is_public(const char *path)
{
	char rest[2 * PATH] = "";
	int links = 0;
	long at = call(openat, AT_FDCWD, "/", O_PATH | O_CLOEXEC);
	struct statx about;

	append(rest, PATH, path);
	for (char *next = rest; at >= 0;) {
		char name[256] = "", *end;

		while (*next == '/')
			next++;
		if (!*next)
			break;
		for (end = next; *end && *end != '/'; end++)
			;
		if (end - next > 255)
			return 0;
		memcpy(name, next, (size_t)(end - next));
		if (same(name, "..") || look((int)at, "", &about) || about.stx_uid || about.stx_mode & 022 ||
		    !(about.stx_mode & 01))
			return 0;
		long found = call(openat, at, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);

		if (found < 0 || look((int)found, "", &about))
			return 0;
		next = end;
		if (is(&about, S_IFLNK)) {
			char target[2 * PATH] = "";
			long size = call(readlinkat, at, name, target, PATH - 1);

			if (about.stx_uid || size <= 0 || ++links > 40)
				return 0;
			append(target, sizeof(target), next);
			if (length(target) + 1 >= sizeof(rest))
				return 0;
			memcpy(rest, target, length(target) + 1);
			next = rest;
			call(close, found);
			if (*rest == '/') {
				call(close, at);
				at = call(openat, AT_FDCWD, "/", O_PATH | O_CLOEXEC);
			}
		} else {
			call(close, at);
			at = found;
		}
	}
	int public = at >= 0 && !look((int)at, "", &about) && is(&about, S_IFREG) && !about.stx_uid &&
		     !(about.stx_mode & 022) && about.stx_mode & 04;

	call(close, at);
	return public;
}

// --- After the command -----------------------------------------------------------------------------------------------

struct left { // what is below an action's directory
	unsigned user;
	int root; // the action's directory
	const char *own; // the path that it had while the action ran
	char path[PATH]; // from there to the current entry
};

static void refuse(struct left *where, const char *why)
{
	if (*refusal)
		return;
	append(refusal, sizeof(refusal), where->path);
	append(refusal, sizeof(refusal), why);
}

// NativeLink follows absolute links, and links on the way to an output, as root. So a link may lead to something in the
// action's directory, or to a file of the system that everybody may read.
static int leads_out(int parent, const char *name, const struct left *where)
{
	struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
	char target[PATH] = "";
	long found, tries = 0;

	call(readlinkat, parent, name, target, PATH - 1);
	if (begins(target, where->own)) // NativeLink will not find it there, because the directory is renamed
		return 0;
	do
		found = call(openat2, where->root, where->path, &how, sizeof(how));
	while (found == -EAGAIN && tries++ < 1000); // something was renamed meanwhile
	if (found >= 0)
		call(close, found);
	if (found == -EXDEV)
		return *target != '/' || !is_public(target);
	return found < 0 && found != -ENOENT && found != -ENOTDIR && found != -ELOOP;
}

// Makes a file root's, if no process has it open for writing. (Another action could have been sent a descriptor of it.)
static long take_file(int parent, const char *name, struct left *where)
{
	struct statx about;
	long file = call(openat, parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC), result;

	if (file < 0)
		return file;
	if ((result = look((int)file, "", &about)) >= 0)
		result = call(fchown, file, 0, 0);
	if (result >= 0)
		result = call(fchmod, file, (about.stx_mode & 0755) | 0400);
	if (result >= 0) {
		if (call(fcntl, file, F_SETLEASE, F_RDLCK) < 0)
			refuse(where, " is still open for writing");
		else
			call(fcntl, file, F_SETLEASE, F_UNLCK);
	}
	call(close, file);
	return result;
}

static long take_folder(int folder, struct left *where);

static long take_entry(int parent, const struct entry *found, void *with)
{
	struct left *where = with;
	struct statx about;
	size_t before = length(where->path);
	long result = look(parent, found->name, &about);

	if (result < 0)
		return result;
	if (before + length(found->name) + 2 > PATH)
		return -ENAMETOOLONG;
	if (before)
		append(where->path, PATH, "/");
	append(where->path, PATH, found->name);
	if (is(&about, S_IFDIR)) {
		long folder = open_folder(parent, found->name);

		result = folder < 0 ? folder : take_folder((int)folder, where);
		call(close, folder);
	} else if (about.stx_uid == where->user) {
		if (is(&about, S_IFREG)) {
			result = take_file(parent, found->name, where);
		} else {
			if (is(&about, S_IFLNK) && leads_out(parent, found->name, where))
				refuse(where, " is a link that leads out of the action's directory");
			result = call(fchownat, parent, found->name, 0, 0, AT_SYMLINK_NOFOLLOW);
		}
	} else if (about.stx_uid) {
		refuse(where, " belongs to another user");
	} else if (is(&about, S_IFLNK) && leads_out(parent, found->name, where)) {
		call(unlinkat, parent, found->name, 0); // an input, in its place or in that of an output
	}
	where->path[before] = 0;
	return result;
}

static long take_folder(int folder, struct left *where)
{
	struct statx about;
	// Only root may change it from here on, even if another action was sent a descriptor of it.
	long result = call(fchown, folder, 0, 0);

	if (result >= 0)
		result = look(folder, "", &about);
	if (result >= 0)
		result = call(fchmod, folder, (about.stx_mode & 0755) | 0700);
	return result < 0 ? result : for_each(folder, take_entry, where);
}

// --- The action ------------------------------------------------------------------------------------------------------

struct action {
	char path[PATH]; // ACTIONS/UUID
	char temporary[64]; // its TMPDIR
	int home; // a descriptor of ACTIONS/UUID
	int lock; // of the user
	unsigned number;
};

static struct action find_action(void)
{
	static struct action found;
	struct statx about;
	const char *name, *rest;

	if (call(getcwd, found.path, PATH) < 0 || !begins(found.path, ACTIONS "/"))
		fail("the command is not in a directory of ", ACTIONS);
	name = found.path + sizeof(ACTIONS);
	if (length(name) < NAME || !begins(rest = name + NAME, "/work") || (rest[5] && rest[5] != '/'))
		fail("the command is not in the directory of an action: ", found.path);
	found.path[sizeof(ACTIONS) + NAME] = 0;
	found.home = (int)open_folder(AT_FDCWD, found.path);
	must(found.home, "opening ", found.path);
	must(look(found.home, "", &about), "reading ", found.path);
	// Each directory is used once. NativeLink lets a request choose the directory in which its command runs.
	if (about.stx_uid || about.stx_mode & 01000 || call(flock, found.home, LOCK_EX | LOCK_NB))
		fail("the directory of another action: ", found.path);
	return found;
}

static const char *value_of(char **environment, const char *name)
{
	for (; *environment; environment++)
		if (begins(*environment, name) && (*environment)[length(name)] == '=')
			return *environment + length(name) + 1;
	return NULL;
}

// Runs the command as the action's user. PATH is searched as by NativeLink.
__attribute__((noreturn)) static void execute(const struct action *action, char **command, char **environment)
{
	static char temporary[96] = "TMPDIR=";
	static char *more[PATH];
	const char *path = value_of(environment, "PATH");
	unsigned user = FIRST_USER + action->number;
	long result = -ENOENT;
	uint64_t none = 0;
	size_t n = 0;

	if (!value_of(environment, "TMPDIR")) {
		append(temporary, sizeof(temporary), action->temporary);
		more[n++] = temporary;
		for (size_t i = 0; environment[i]; i++) {
			if (n + 1 >= sizeof(more) / sizeof(*more))
				fail("the action has too many environment variables");
			more[n++] = environment[i];
		}
		environment = more;
	}
	call(rt_sigprocmask, 2 /* SIG_SETMASK */, &none, NULL, sizeof(none));
	call(umask, 022);
	become(user);
	call(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	const char *slash = *command;

	while (*slash && *slash != '/')
		slash++;
	if (*slash) {
		result = call(execve, *command, command, environment);
	} else {
		int denied = 0;

		if (!path)
			path = "/usr/local/bin:/bin:/usr/bin";
		for (const char *end; **command; path = end + 1) {
			char file[PATH] = "";

			for (end = path; *end && *end != ':'; end++)
				;
			if (end - path + length(*command) + 2 < PATH) {
				memcpy(file, path, (size_t)(end - path));
				if (end != path)
					append(file, PATH, "/");
				append(file, PATH, *command);
				result = call(execve, file, command, environment);
				denied |= result == -EACCES;
				if (result != -EACCES && result != -ENOENT && result != -ENOTDIR)
					break;
			}
			if (!*end)
				break;
		}
		if (denied)
			result = -EACCES;
	}
	say("the command ", *command,
	    result == -ENOENT    ? " does not exist"
	    : result == -EACCES  ? " must not be executed"
	    : result == -ENOEXEC ? " is no program for this machine"
				 : " cannot be executed");
	quit(result == -ENOENT ? NOT_FOUND : NOT_RUN);
}

// Waits for the command, or for the end of the process that NativeLink started. Returns the command's status, or -1.
static int await(long command)
{
	uint64_t signals = 1u << (SIGCHLD - 1) | 1u << (SIGTERM - 1);

	for (;;) {
		int status = 0;
		long ended = call(wait4, -1, &status, WNOHANG, NULL);

		if (ended == command)
			return status;
		if (ended > 0)
			continue; // an orphan
		if (call(rt_sigtimedwait, &signals, NULL, NULL, sizeof(signals)) == SIGTERM)
			return -1;
	}
}

static int supervise(struct action *action, long starter, char **command, char **environment)
{
	uint64_t signals = 1u << (SIGCHLD - 1) | 1u << (SIGTERM - 1);
	unsigned user = FIRST_USER + action->number;
	long work, child;
	int status;

	call(rt_sigprocmask, 0 /* SIG_BLOCK */, &signals, NULL, sizeof(signals));
	end_processes(action->number);
	call(prctl, PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0); // after each change of the user, which resets it
	call(prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	if (call(getppid) != starter)
		quit(NOT_RUN);
	remove_folder(AT_FDCWD, action->temporary); // an earlier action of this user may have opened it for others
	must(call(mkdirat, AT_FDCWD, action->temporary, 0700), "making ", action->temporary);
	must(call(fchownat, AT_FDCWD, action->temporary, user, user, AT_SYMLINK_NOFOLLOW), "making ", action->temporary);
	must(call(fchmod, action->home, 01711), "marking ", action->path);
	must(call(renameat2, action->home, "work", action->home, "action", 0), "taking ", action->path);
	must(work = open_folder(action->home, "action"), "opening ", action->path);
	must(give_folder((int)work, user), "giving away ", action->path);

	must(child = fork_process(), "starting ", "the command");
	if (!child)
		execute(action, command, environment);
	status = await(child);
	call(fchmod, action->home, 01700); // closed for the next action of this user
	end_processes(action->number);
	reap();
	if (status >= 0) {
		static struct left where;
		static char own[PATH + 8];
		long result;

		append(own, sizeof(own), action->path);
		append(own, sizeof(own), "/action/");

		where.user = user;
		where.root = (int)work;
		where.own = own;
		call(lseek, work, 0, 0);
		if ((result = take_folder((int)work, &where)) < 0 && !*refusal) {
			append(refusal, sizeof(refusal), where.path);
			append(refusal, sizeof(refusal), " cannot be read: error ");
			append(refusal, sizeof(refusal), decimal(-result));
		}
		if (*refusal) { // NativeLink finds no outputs then
			say("refused: ", refusal);
			call(mkdirat, action->home, "work", 0700);
		} else {
			must(call(renameat2, action->home, "action", action->home, "work", 0), "handing over ", action->path);
		}
	}
	remove_folder(AT_FDCWD, action->temporary);
	for (const char *const *folder = SHARED_FOLDERS; *folder; folder++)
		empty(*folder, &user);
	return *refusal ? NOT_RUN << 8 : status;
}

static int run(char **command, char **environment)
{
	struct action action = find_action();
	long starter = call(getpid), supervisor;
	int *status, ended = 0;

	if (!*command)
		fail("there is no command");
	action.number = take_number(&action.lock);
	append(action.temporary, sizeof(action.temporary), USERS "/");
	append(action.temporary, sizeof(action.temporary), decimal(action.number));
	status = (int *)call(mmap, NULL, 4096, 3 /* read, write */, 0x21 /* shared, anonymous */, -1, 0);
	*status = NOT_RUN << 8;
	must(supervisor = fork_process(), "starting ", "a process");
	if (!supervisor) {
		*status = supervise(&action, starter, command, environment);
		quit(0);
	}
	call(close, action.lock);
	call(close, action.home);
	while (call(wait4, supervisor, &ended, 0, NULL) == -EINTR)
		;
	if (ended || *status & 0x7f) // a signal ended it
		call(kill, starter, SIGKILL);
	return *status >> 8 & 0xff;
}

// --- The container ---------------------------------------------------------------------------------------------------

// Returns 1 if the kernel refuses the current user's connections to a port. Nothing has to listen there.
static int is_refused(int family, uint16_t port)
{
	struct { uint16_t family, port; uint32_t flow; uint8_t address[16]; uint32_t scope; } to = {0};
	long connection = call(socket, family, SOCK_STREAM | O_CLOEXEC, 0), result;

	if (connection < 0)
		return connection == -EAFNOSUPPORT; // a node without IPv6
	to.family = (uint16_t)family;
	to.port = (uint16_t)(port << 8 | port >> 8);
	if (family == AF_INET) {
		to.flow = 0x0100007f; // 127.0.0.1 stands in this place
		result = call(connect, connection, &to, 16);
	} else {
		to.address[15] = 1; // ::1
		result = call(connect, connection, &to, 28);
	}
	call(close, connection);
	return result == -EPERM;
}

// Fails if an action could connect to a port that is only for workers.
static void check_guard(void)
{
	int status = 0;
	long child;

	must(child = fork_process(), "starting ", "a process");
	if (!child) {
		unsigned user = FIRST_USER + MOST_ACTIONS - 1;

		become(user);
		for (size_t i = 0; i < sizeof(GUARDED) / sizeof(*GUARDED); i++)
			if (!is_refused(AF_INET, GUARDED[i]) || !is_refused(AF_INET6, GUARDED[i]))
				fail("the node lets actions connect to port ", decimal(GUARDED[i]),
				     ", so they could write action results or act as workers. Run role node_agent for it"
				     " (node_agent_guard), or set nativelink_worker_access to network_policy");
		quit(0);
	}
	while (call(wait4, child, &status, 0, NULL) == -EINTR)
		;
	if (status)
		quit(NOT_RUN);
}

static void check_privileges(void)
{
	struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct has[2] = {{0}};
	struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_BENEATH};
	char missing[128] = "";

	if (call(geteuid))
		fail("the container must run as user 0 (runAsUser)");
	must(call(capget, &header, has), "reading ", "capabilities");
	for (size_t i = 0; i < sizeof(CAPABILITY_NAMES) / sizeof(*CAPABILITY_NAMES); i++)
		if (CAPABILITIES & ~has[0].effective & NEEDED(i)) {
			append(missing, sizeof(missing), " ");
			append(missing, sizeof(missing), CAPABILITY_NAMES[i]);
		}
	if (*missing)
		fail("the container lacks the capabilities", missing);
	if (call(prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
		fail("the container must not allow privilege escalation (allowPrivilegeEscalation: false)");
	if (call(openat2, AT_FDCWD, "/", &how, sizeof(how)) != -EXDEV)
		fail("the kernel lacks openat2, which 5.6 and newer have");
}

static void make_folder(const char *path, unsigned mode)
{
	long result = call(mkdirat, AT_FDCWD, path, mode), folder;

	if (result == -EEXIST)
		result = 0;
	must(result, "making ", path);
	must(folder = open_folder(AT_FDCWD, path), "opening ", path);
	must(call(fchown, folder, 0, 0), "taking ", path);
	must(call(fchmod, folder, mode), "closing ", path);
	call(close, folder);
}

static void prepare(int guarded)
{
	int lock;

	check_privileges();
	make_folder(SCRATCH, 0711);
	make_folder(STATE, 0700);
	// What was there before a restart may have been made by an action: markers, inputs in the store.
	empty(SCRATCH "/store", NULL);
	empty(USERS, NULL);
	empty(STATE, NULL);
	make_folder(SCRATCH "/store", 0700);
	make_folder(USERS, 0711);
	for (const char *const *folder = SHARED_FOLDERS; *folder; folder++) {
		long shared = open_folder(AT_FDCWD, *folder);

		if (shared >= 0)
			call(fchmod, shared, 01777);
		call(close, shared);
	}
	take_number(&lock);
	long again = call(openat, AT_FDCWD, USERS "/0.lock", O_RDONLY | O_CLOEXEC);

	call(close, lock); // a file that is open for writing gets no lease
	if (call(fcntl, again, F_SETLEASE, F_RDLCK) < 0)
		fail("the file system of ", SCRATCH, " has no leases");
	call(fcntl, again, F_SETLEASE, F_UNLCK);
	end_processes(MOST_ACTIONS - 1); // the user namespace has to have all users
	if (guarded) {
		must(call(mkdirat, AT_FDCWD, STATE "/guarded", 0700), "making ", STATE "/guarded"); // for precondition.sh
		check_guard();
	}
}

__attribute__((noreturn, used)) void enter(long *stack)
{
	char **arguments = (char **)(stack + 1), **environment = arguments + *stack + 1;
	const char *name = arguments[0];

	for (const char *at = name; *at; at++)
		if (*at == '/')
			name = at + 1;
	if (same(name, "action"))
		quit(run(arguments + 1, environment));
	if (same(name, "guarded"))
		check_guard();
	else if (!same(name, "prepare"))
		fail("the program has no name that it knows: ", name);
	else if (*stack < 2 || !same(arguments[1], "--version"))
		prepare(*stack > 1 && same(arguments[1], "guarded"));
	quit(0);
}
