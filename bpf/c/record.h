// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What replication hears of. */
#pragma once

#include "defs.h"

enum record_op {
	RECORD_UPDATE = 1,
	RECORD_DELETE = 2,
	RECORD_AFFINITY = 3, /* client, service, endpoint_id, and idle_ms since its last new flow */
};

enum record_reason {
	RECORD_NEW = 1,
	RECORD_STATE = 2,
	RECORD_ADOPT = 3,
	RECORD_CLOSE = 4,
	RECORD_EXPIRE = 5,
	RECORD_SNAPSHOT = 6, /* the owner's own word */
	RECORD_HEARSAY = 7,  /* a replica, repeated; its owner lives */
	RECORD_ORPHAN = 8,   /* a replica nobody answers for */
	RECORD_COUNTERS = 9, /* what has become of a flow that lives on */
};

/* What happened to a connection: the ring's record and the wire record of replication.
 * Little endian, ports and addresses in network order. */
struct flow_record {
	struct addr client;
	struct addr vip;
	struct addr snat;
	struct addr endpoint;
	__be16 client_port;
	__be16 vip_port;
	__be16 snat_port;
	__be16 endpoint_port;
	__u16 service;
	__u16 endpoint_id;
	__u8 proto;
	__u8 mode;
	__u8 state;
	__u8 op;
	__u8 owner_slot;
	__u8 reason;
	__u8 flags; /* FIN and RST bits as the forward half has them */
	__u8 pad;
	__u32 idle_ms; /* age of the last packet, saturating; in the ring its stamp */
	__u32 age_ms;  /* age of the connection, saturating */
	__u32 epoch;   /* of the mastership under which the owner forwards; 0: none. User space knows it */
	__u64 forward_packets;
	__u64 forward_bytes;
	__u64 reply_packets;
	__u64 reply_bytes;
};

_Static_assert(sizeof(struct flow_record) == 128, "flow_record");
_Static_assert(offsetof(struct flow_record, service) == 72, "flow_record.service");
_Static_assert(offsetof(struct flow_record, owner_slot) == 80, "flow_record.owner_slot");
_Static_assert(offsetof(struct flow_record, idle_ms) == 84, "flow_record.idle_ms");
_Static_assert(offsetof(struct flow_record, forward_packets) == 96, "flow_record.forward_packets");
