//go:build ofi

// What Go needs of libfabric, in functions that cgo can call: most of
// libfabric's own are inline, or jump through tables. Nothing here waits but
// ofi_await_event and ofi_wait_completions, and nothing keeps state. Results are 0 or more, or a negative
// error of libfabric.
#ifndef CKPTD_OFI_SHIM_H
#define CKPTD_OFI_SHIM_H

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

// ofi_info looks up how node:service is reached (or listened at) by a
// provider. What it gives is freed by fi_freeinfo.
int ofi_info(const char *provider, const char *node, const char *service, int listen, struct fi_info **info);

// A fabric has one event queue, a domain one completion queue.
int ofi_open_fabric(struct fi_info *info, struct fid_fabric **fabric, struct fid_eq **eq);
int ofi_open_domain(struct fid_fabric *fabric, struct fi_info *info, size_t completions, struct fid_domain **domain, struct fid_cq **cq);
int ofi_close(struct fid *fid);

struct ofi_memory {
	struct fid_mr *mr;
	void *desc;    // for local use
	uint64_t key;  // for the other side
	uint64_t base; // the address of the first byte, as the other side says it
};

// ofi_register makes memory known to a domain; key is used where the provider
// does not choose one.
int ofi_register(struct fid_domain *domain, struct fi_info *info, void *buf, size_t len, uint64_t access, uint64_t key, struct ofi_memory *memory);

int ofi_listen(struct fid_fabric *fabric, struct fi_info *info, struct fid_eq *eq, struct fid_pep **pep);
// ofi_name writes the numeric host and port that a listener has.
int ofi_name(struct fid *fid, char *host, size_t hostlen, char *port, size_t portlen);
int ofi_reject(struct fid_pep *pep, struct fi_info *info);

int ofi_endpoint(struct fid_domain *domain, struct fi_info *info, struct fid_eq *eq, struct fid_cq *cq, struct fid_ep **ep);
int ofi_connect(struct fid_ep *ep, struct fi_info *info, const void *param, size_t len);
int ofi_accept(struct fid_ep *ep);
int ofi_shutdown(struct fid_ep *ep);

// The context of an operation is a number, which its completion has again.
int ofi_recv(struct fid_ep *ep, void *buf, size_t len, void *desc, uint64_t context);
int ofi_send(struct fid_ep *ep, const void *buf, size_t len, void *desc, uint64_t context);
int ofi_read(struct fid_ep *ep, void *buf, size_t len, void *desc, uint64_t addr, uint64_t key, uint64_t context);
int ofi_write(struct fid_ep *ep, const void *buf, size_t len, void *desc, uint64_t addr, uint64_t key, uint64_t context);

enum { OFI_PARAM = 64, OFI_BATCH = 32 };

struct ofi_event {
	uint32_t kind;         // FI_CONNREQ, FI_CONNECTED, FI_SHUTDOWN; 0: an error
	int err;               // positive
	struct fid *fid;       // whose event it is; only compared
	struct fi_info *info;  // of a FI_CONNREQ; freed by who takes it
	size_t len;            // of param
	unsigned char param[OFI_PARAM];
};

// ofi_await_event waits until there is an event, or for a time. ofi_take_event
// takes one: 1, or 0 when there is none. Between a take and what is done with
// the event nobody may close what it is about, or a new one at the same address
// would get it.
void ofi_await_event(struct fid_eq *eq, int milliseconds);
int ofi_take_event(struct fid_eq *eq, struct ofi_event *event);

struct ofi_completion {
	uint64_t context;
	size_t len;
	int err; // positive; 0: done
};

// ofi_wait_completions waits for completions and says how many there are; 0:
// none in time.
int ofi_wait_completions(struct fid_cq *cq, struct ofi_completion *done, int milliseconds);
void ofi_wake(struct fid_cq *cq);

#endif
