//go:build ofi

#include "shim.h"

#include <netdb.h>
#include <string.h>
#include <sys/socket.h>

int ofi_info(const char *provider, const char *node, const char *service, int listen, struct fi_info **info)
{
	struct fi_info *hints = fi_allocinfo();
	int rc;

	if (!hints)
		return -FI_ENOMEM;
	hints->caps = FI_MSG | FI_RMA;
	hints->mode = 0; // contexts are numbers, not memory of the provider
	hints->ep_attr->type = FI_EP_MSG;
	hints->domain_attr->threading = FI_THREAD_SAFE;
	hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
	hints->fabric_attr->prov_name = strdup(provider); // freed with hints
	rc = fi_getinfo(FI_VERSION(1, 17), node, service, listen ? FI_SOURCE : 0, hints, info);
	fi_freeinfo(hints);
	return rc;
}

int ofi_open_fabric(struct fi_info *info, struct fid_fabric **fabric, struct fid_eq **eq)
{
	struct fi_eq_attr attr = { .wait_obj = FI_WAIT_UNSPEC };
	int rc = fi_fabric(info->fabric_attr, fabric, NULL);

	if (rc)
		return rc;
	rc = fi_eq_open(*fabric, &attr, eq, NULL);
	if (rc)
		fi_close(&(*fabric)->fid);
	return rc;
}

int ofi_open_domain(struct fid_fabric *fabric, struct fi_info *info, size_t completions, struct fid_domain **domain, struct fid_cq **cq)
{
	struct fi_cq_attr attr = { .size = completions, .format = FI_CQ_FORMAT_MSG, .wait_obj = FI_WAIT_UNSPEC };
	int rc = fi_domain(fabric, info, domain, NULL);

	if (rc)
		return rc;
	rc = fi_cq_open(*domain, &attr, cq, NULL);
	if (rc)
		fi_close(&(*domain)->fid);
	return rc;
}

int ofi_close(struct fid *fid) { return fi_close(fid); }

int ofi_register(struct fid_domain *domain, struct fi_info *info, void *buf, size_t len, uint64_t access, uint64_t key, struct ofi_memory *memory)
{
	int rc = fi_mr_reg(domain, buf, len, access, 0, key, 0, &memory->mr, NULL);

	if (rc)
		return rc;
	memory->desc = fi_mr_desc(memory->mr);
	memory->key = fi_mr_key(memory->mr);
	memory->base = info->domain_attr->mr_mode & FI_MR_VIRT_ADDR ? (uint64_t)(uintptr_t)buf : 0;
	return 0;
}

int ofi_listen(struct fid_fabric *fabric, struct fi_info *info, struct fid_eq *eq, struct fid_pep **pep)
{
	int rc = fi_passive_ep(fabric, info, pep, NULL);

	if (rc)
		return rc;
	rc = fi_pep_bind(*pep, &eq->fid, 0);
	if (!rc)
		rc = fi_listen(*pep);
	if (rc)
		fi_close(&(*pep)->fid);
	return rc;
}

int ofi_name(struct fid *fid, char *host, size_t hostlen, char *port, size_t portlen)
{
	struct sockaddr_storage addr;
	size_t len = sizeof addr;
	int rc = fi_getname(fid, &addr, &len);

	if (rc)
		return rc;
	if (getnameinfo((struct sockaddr *)&addr, len, host, hostlen, port, portlen, NI_NUMERICHOST | NI_NUMERICSERV))
		return -FI_EADDRNOTAVAIL;
	return 0;
}

int ofi_reject(struct fid_pep *pep, struct fi_info *info) { return fi_reject(pep, info->handle, NULL, 0); }

int ofi_endpoint(struct fid_domain *domain, struct fi_info *info, struct fid_eq *eq, struct fid_cq *cq, struct fid_ep **ep)
{
	int rc = fi_endpoint(domain, info, ep, NULL);

	if (rc)
		return rc;
	rc = fi_ep_bind(*ep, &eq->fid, 0);
	if (!rc)
		rc = fi_ep_bind(*ep, &cq->fid, FI_TRANSMIT | FI_RECV);
	if (!rc)
		rc = fi_enable(*ep);
	if (rc)
		fi_close(&(*ep)->fid);
	return rc;
}

int ofi_connect(struct fid_ep *ep, struct fi_info *info, const void *param, size_t len) { return fi_connect(ep, info->dest_addr, param, len); }
int ofi_accept(struct fid_ep *ep) { return fi_accept(ep, NULL, 0); }
int ofi_shutdown(struct fid_ep *ep) { return fi_shutdown(ep, 0); }

int ofi_recv(struct fid_ep *ep, void *buf, size_t len, void *desc, uint64_t context) { return fi_recv(ep, buf, len, desc, 0, (void *)(uintptr_t)context); }
int ofi_send(struct fid_ep *ep, const void *buf, size_t len, void *desc, uint64_t context) { return fi_send(ep, buf, len, desc, 0, (void *)(uintptr_t)context); }
int ofi_read(struct fid_ep *ep, void *buf, size_t len, void *desc, uint64_t addr, uint64_t key, uint64_t context) { return fi_read(ep, buf, len, desc, 0, addr, key, (void *)(uintptr_t)context); }
int ofi_write(struct fid_ep *ep, const void *buf, size_t len, void *desc, uint64_t addr, uint64_t key, uint64_t context) { return fi_write(ep, buf, len, desc, 0, addr, key, (void *)(uintptr_t)context); }

union entry {
	struct fi_eq_cm_entry entry;
	unsigned char room[sizeof(struct fi_eq_cm_entry) + 256];
};

void ofi_await_event(struct fid_eq *eq, int milliseconds)
{
	union entry buf;
	uint32_t kind;

	(void)fi_eq_sread(eq, &kind, &buf, sizeof buf, milliseconds, FI_PEEK);
}

int ofi_take_event(struct fid_eq *eq, struct ofi_event *event)
{
	union entry buf;
	struct fi_eq_err_entry err = { 0 };
	uint32_t kind = 0;
	ssize_t n;

	memset(event, 0, sizeof *event);
	n = fi_eq_read(eq, &kind, &buf, sizeof buf, 0);
	if (n == -FI_EAGAIN || n == -FI_EINTR)
		return 0;
	if (n == -FI_EAVAIL) {
		n = fi_eq_readerr(eq, &err, 0);
		if (n < 0)
			return n == -FI_EAGAIN ? 0 : (int)n;
		event->fid = err.fid;
		event->err = err.err ? err.err : FI_EOTHER;
		return 1;
	}
	if (n < 0)
		return (int)n;
	event->kind = kind;
	event->fid = buf.entry.fid;
	if (kind == FI_CONNREQ)
		event->info = buf.entry.info;
	if (n > (ssize_t)sizeof buf.entry) {
		event->len = n - sizeof buf.entry;
		if (event->len > OFI_PARAM)
			event->len = OFI_PARAM;
		memcpy(event->param, buf.entry.data, event->len);
	}
	return 1;
}

int ofi_wait_completions(struct fid_cq *cq, struct ofi_completion *done, int milliseconds)
{
	struct fi_cq_msg_entry entries[OFI_BATCH];
	struct fi_cq_err_entry err = { 0 };
	ssize_t n = fi_cq_sread(cq, entries, OFI_BATCH, NULL, milliseconds);

	if (n == -FI_EAGAIN || n == -FI_ETIMEDOUT || n == -FI_EINTR || n == -FI_ECANCELED)
		return 0;
	if (n == -FI_EAVAIL) {
		n = fi_cq_readerr(cq, &err, 0);
		if (n < 0)
			return n == -FI_EAGAIN ? 0 : (int)n;
		done[0].context = (uint64_t)(uintptr_t)err.op_context;
		done[0].len = 0;
		done[0].err = err.err ? err.err : FI_EOTHER;
		return 1;
	}
	for (ssize_t i = 0; i < n; i++) {
		done[i].context = (uint64_t)(uintptr_t)entries[i].op_context;
		done[i].len = entries[i].len;
		done[i].err = 0;
	}
	return (int)n;
}

void ofi_wake(struct fid_cq *cq) { fi_cq_signal(cq); }
