#include "dist/team.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/memory.h"
#include "dist/agree.h"

enum {
  WAVE = 64,          /* ranks that knock at once: below any system's limit of waiting connections, so that connect() never blocks */
  PATIENCE = 60,      /* seconds; only a bug or a foreign visitor makes anybody wait */
  PART = 64 << 20,    /* bytes per fallocate: a signal then costs one part, not all */
  FIRST_TOUCH = 4096, /* granule of dealing pages */
};

/* ---- Who shares memory with whom ------------------------------------------------------------------------------------------------ */

/* The address of a rendezvous and what proves that a visitor belongs to us: abstract names can be listed by any user of the node. */
typedef struct door {
  char name[40];
  unsigned char secret[16];
} door;

typedef struct knock {
  unsigned char secret[16];
  int rank;
} knock;

static status socket_error(const char *what) { return fail(E_IO, "team: shared memory of a node: %s: %s", what, strerror(errno)); }

static socklen_t door_address(const door *d, struct sockaddr_un *address) {
  *address = (struct sockaddr_un){.sun_family = AF_UNIX}; /* a name that starts with zero lives in no folder and dies with its socket */
  memcpy(address->sun_path + 1, d->name, strlen(d->name));
  return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(d->name));
}

static status door_open(door *d, int *listener) {
  unsigned char random[12];
  struct sockaddr_un address;
  if (getrandom(random, sizeof random, 0) != sizeof random || getrandom(d->secret, sizeof d->secret, 0) != sizeof d->secret)
    return socket_error("random name");
  size_t used = (size_t)snprintf(d->name, sizeof d->name, "cloqwork-");
  for (size_t i = 0; i < sizeof random; i++) used += (size_t)snprintf(d->name + used, sizeof d->name - used, "%02x", random[i]);
  socklen_t length = door_address(d, &address);
  *listener = fault_here() ? -1 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (*listener < 0 || bind(*listener, (struct sockaddr *)&address, length) != 0 || listen(*listener, 2 * WAVE) != 0)
    return socket_error("socket");
  return OK;
}

static void be_patient(int fd) {
  struct timeval wait = {.tv_sec = PATIENCE};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
}

static status door_knock(const door *d, int rank, int *link) {
  struct sockaddr_un address;
  socklen_t length = door_address(d, &address);
  knock k = {.rank = rank};
  memcpy(k.secret, d->secret, sizeof k.secret);
  *link = fault_here() ? -1 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (*link < 0 || connect(*link, (struct sockaddr *)&address, length) != 0 || send(*link, &k, sizeof k, MSG_NOSIGNAL) != sizeof k)
    return socket_error("meeting the team's first rank (do the ranks of this node share a network namespace? ranks_per_team 1 needs none)");
  be_patient(*link);
  return OK;
}

/* Lets ranks [first, last) in; all of them stand at the door already. */
static status door_answer(const door *d, int listener, int first, int last, int *links) {
  for (int missing = last - first; missing > 0;) {
    knock k;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0 && errno == EINTR) continue;
    if (fd < 0) return socket_error("accepting a rank");
    be_patient(fd);
    bool ours = recv(fd, &k, sizeof k, MSG_WAITALL) == sizeof k && memcmp(k.secret, d->secret, sizeof k.secret) == 0 && k.rank >= first &&
                k.rank < last && links[k.rank] < 0;
    if (!ours) {
      close(fd);
      continue;
    }
    links[k.rank] = fd;
    missing--;
  }
  return OK;
}

/* Collective over t->comm. A socket between the team's first rank and every other one, through which it hands out descriptors of memory:
 * memory that has no name in any file system needs no space in /dev/shm and leaves nothing behind, whoever is killed when. */
static status meet(team *t) {
  status st = OK;
  int listener = -1;
  door d = {0};
  int count = t->rank == 0 ? t->size : 1;
  st = NEW(t->links, count, "links of a team");
  for (int i = 0; st == OK && i < count; i++) t->links[i] = -1;
  if (st == OK && t->size > 1 && t->rank == 0) st = door_open(&d, &listener);
  TRY(agree(t->comm, st));
  MPI_Bcast(&d, sizeof d, MPI_BYTE, 0, t->comm);
  for (int first = 1; first < t->size; first += WAVE) {
    int last = first + WAVE < t->size ? first + WAVE : t->size;
    if (t->rank >= first && t->rank < last) st = door_knock(&d, t->rank, &t->links[0]);
    TRY(agree(t->comm, st));
    if (t->rank == 0) st = door_answer(&d, listener, first, last, t->links);
    TRY(agree(t->comm, st));
  }
done:
  if (listener >= 0) close(listener);
  return st;
}

/* Collective over t->job: numbers the teams by their lowest job rank. */
static status number_teams(team *t) {
  status st = OK;
  int *leader = NULL, mine = t->job_rank;
  MPI_Bcast(&mine, 1, MPI_INT, 0, t->comm);
  TRY(agree(t->job, NEW(leader, t->job_size, "teams")));
  MPI_Allgather(&mine, 1, MPI_INT, leader, 1, MPI_INT, t->job);
  for (int r = 0; r < t->job_size; r++) t->count += leader[r] == r;
  st = NEW(t->sizes, t->count, "teams");
  if (st == OK) st = NEW(t->first, t->count, "teams");
  TRY(agree(t->job, st));
  for (int r = 0, k = 0; r < t->job_size; r++)
    if (leader[r] == r) {
      t->first[k] = r;
      for (int s = 0; s < t->job_size; s++) t->sizes[k] += leader[s] == r;
      if (r == mine) t->index = k;
      k++;
    }
done:
  FREE(leader);
  return st;
}

status team_new(MPI_Comm job, int ranks_per_team, team *t) {
  status st = OK;
  MPI_Comm node = MPI_COMM_NULL;
  *t = (team){.job = MPI_COMM_NULL, .comm = MPI_COMM_NULL};
  TRY(agree_same(job, "ranks per team", &ranks_per_team, sizeof ranks_per_team));
  TRY(agree(job, mpi_check(MPI_Comm_dup(job, &t->job), "team: communicator")));
  MPI_Comm_rank(t->job, &t->job_rank);
  MPI_Comm_size(t->job, &t->job_size);
  TRY(agree(t->job,
            mpi_check(MPI_Comm_split_type(t->job, MPI_COMM_TYPE_SHARED, t->job_rank, MPI_INFO_NULL, &node), "team: ranks of a node")));
  int node_rank, node_size, part = 0;
  MPI_Comm_rank(node, &node_rank);
  MPI_Comm_size(node, &node_size);
  t->node_ranks = node_size;
  if (ranks_per_team > 0) {
    int parts = (node_size + ranks_per_team - 1) / ranks_per_team;
    int64_t begin = 0, end = 0;
    for (part = 0; part < parts; part++) {
      deal_range(node_size, parts, part, 1, &begin, &end);
      if (node_rank < end) break;
    }
  }
  TRY(agree(t->job, mpi_check(MPI_Comm_split(node, part, node_rank, &t->comm), "team: communicator")));
  MPI_Comm_rank(t->comm, &t->rank);
  MPI_Comm_size(t->comm, &t->size);
  TRY(number_teams(t));
  TRY(agree(t->job, meet(t)));
done:
  if (node != MPI_COMM_NULL) MPI_Comm_free(&node);
  if (st != OK) team_free(t);
  return st;
}

void team_free(team *t) {
  for (int i = 0; t->links && i < (t->rank == 0 ? t->size : 1); i++)
    if (t->links[i] >= 0) close(t->links[i]);
  FREE(t->links);
  FREE(t->sizes);
  FREE(t->first);
  if (t->job_size) { /* {0} is an empty team too */
    if (t->comm != MPI_COMM_NULL) MPI_Comm_free(&t->comm);
    if (t->job != MPI_COMM_NULL) MPI_Comm_free(&t->job);
  }
  *t = (team){.job = MPI_COMM_NULL, .comm = MPI_COMM_NULL};
}

/* ---- Shared memory -------------------------------------------------------------------------------------------------------------- */

static uint64_t now, peak;
uint64_t shared_now(void) { return now; }
uint64_t shared_peak(void) { return peak; }

/* Bytes this node can still give, as the kernel estimates it; UINT64_MAX when it does not say. */
static uint64_t memory_left(void) {
  uint64_t left = UINT64_MAX, total = mem_machine_total();
  FILE *f = fopen("/proc/meminfo", "r");
  if (f) {
    char line[256];
    unsigned long long kib, sum = 0;
    bool found = false;
    while (fgets(line, sizeof line, f)) {
      if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) sum += kib, found = true;
      if (sscanf(line, "SwapFree: %llu kB", &kib) == 1) sum += kib;
    }
    fclose(f);
    if (found) left = (uint64_t)sum << 10;
  }
  return total && total < left ? total : left;
}

static status memory_error(const char *what, size_t bytes, const char *reason) {
  return fail(E_MEMORY, "shared memory: %s: %.3f GiB refused by the system: %s", what, (double)bytes / (1 << 30), reason);
}

static status memory_open(size_t bytes, const char *what, int *fd) {
  uint64_t left = memory_left();
  if (bytes > left)
    return fail(E_MEMORY, "shared memory: %s: expected %.3f GiB, this node has %.3f GiB left", what, (double)bytes / (1 << 30),
                (double)left / (1 << 30));
  *fd = fault_here() ? -1 : memfd_create("cloqwork", MFD_CLOEXEC);
  if (*fd < 0 || ftruncate(*fd, (off_t)bytes) != 0) return memory_error(what, bytes, strerror(errno));
  return OK;
}

typedef union carrier { /* room for one descriptor, aligned as the kernel wants it */
  struct cmsghdr header;
  char room[CMSG_SPACE(sizeof(int))];
} carrier;

static status descriptor_send(int link, int fd) {
  char byte = 0;
  struct iovec data = {&byte, 1};
  carrier c = {.room = {0}};
  struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = c.room, .msg_controllen = sizeof c.room};
  struct cmsghdr *h = CMSG_FIRSTHDR(&m);
  *h = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
  memcpy(CMSG_DATA(h), &fd, sizeof fd);
  ssize_t sent;
  do sent = sendmsg(link, &m, MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  if (sent == 1) return OK;
  status st = socket_error("handing out memory");
  shutdown(link, SHUT_RDWR); /* who waits at the other end must not wait for ever */
  return st;
}

static status descriptor_receive(int link, int *fd) {
  char byte;
  struct iovec data = {&byte, 1};
  carrier c = {.room = {0}};
  struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = c.room, .msg_controllen = sizeof c.room};
  ssize_t got;
  do got = recvmsg(link, &m, MSG_CMSG_CLOEXEC);
  while (got < 0 && errno == EINTR);
  struct cmsghdr *h = got == 1 ? CMSG_FIRSTHDR(&m) : NULL;
  if (!h || h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS || h->cmsg_len != CMSG_LEN(sizeof *fd)) {
    if (got == 0) errno = ECONNRESET;
    return socket_error("receiving memory");
  }
  memcpy(fd, CMSG_DATA(h), sizeof *fd);
  if (!fault_here()) return OK;
  errno = EMFILE;
  return socket_error("receiving memory");
}

/* My part of the pages, allocated now and by me: near my core, and a lack of memory is an error here instead of a signal later. */
static status memory_claim(const team *t, int fd, size_t bytes, const char *what) {
  int64_t begin, end;
  deal_range((int64_t)bytes, t->size, t->rank, FIRST_TOUCH, &begin, &end);
  while (begin < end) {
    off_t length = end - begin < PART ? end - begin : PART;
    int rc = fault_here() ? ENOMEM : posix_fallocate(fd, begin, length);
    if (rc == EINTR) continue;
    if (rc != 0) return memory_error(what, bytes, strerror(rc));
    begin += length;
  }
  return OK;
}

status shared_new(const team *t, size_t bytes, const char *what, shared *s) {
  status st = OK;
  int fd = -1;
  void *base = MAP_FAILED;
  *s = (shared){NULL, 0};
  TRY(agree_same(t->comm, what, &bytes, sizeof bytes));
  if (bytes == 0) return OK;

  if (t->rank == 0) st = memory_open(bytes, what, &fd);
  TRY(agree(t->comm, st));
  if (t->rank != 0) st = descriptor_receive(t->links[0], &fd);
  for (int r = 1; t->rank == 0 && r < t->size; r++) {
    status sent = descriptor_send(t->links[r], fd);
    if (st == OK) st = sent;
  }
  TRY(agree(t->comm, st));

  st = memory_claim(t, fd, bytes, what);
  if (st == OK && (base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED)
    st = memory_error(what, bytes, strerror(errno));
  TRY(agree(t->comm, st));
  *s = (shared){base, bytes};
  now += bytes;
  if (now > peak) peak = now;
done:
  if (st != OK && base != MAP_FAILED) munmap(base, bytes);
  if (fd >= 0) close(fd);
  return st;
}

void shared_free(shared *s) {
  if (s->base) {
    munmap(s->base, s->bytes);
    now -= s->bytes;
  }
  *s = (shared){NULL, 0};
}

void team_barrier(const team *t) {
  atomic_thread_fence(memory_order_seq_cst);
  MPI_Barrier(t->comm);
  atomic_thread_fence(memory_order_seq_cst);
}
