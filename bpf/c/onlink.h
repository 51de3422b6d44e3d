// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Tables of what is said of interfaces, by the low bits of their numbers. Two interfaces whose low bits are the
 * same stand one behind the other; ../onlink.go writes them. */
#pragma once

#include "maps.h"

/* on_link looks an entry up, whose first member that tells is ifindex. It ends at the first place that nobody
 * ever had, so that where nothing is said one look is enough. */
#define on_link(map, size, index)                                                       \
	({                                                                              \
		__u32 _i, _at;                                                          \
		typeof((map).value) _e, _found = NULL;                                  \
		_Pragma("unroll") for (_i = 0; _i < LINK_PROBES; _i++)                  \
		{                                                                       \
			_at = ((index) + _i) % (size);                                  \
			_e = bpf_map_lookup_elem(&(map), &_at);                         \
			if (!_e || !_e->ifindex)                                        \
				break;                                                  \
			if (_e->ifindex == (index)) {                                   \
				_found = _e;                                            \
				break;                                                  \
			}                                                               \
		}                                                                       \
		_found;                                                                 \
	})
