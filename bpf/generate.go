package bpf

// The include paths name the multiarch folders of both 64 bit little-endian machines: a bpf
// target does not look there by itself, and one that is not there is ignored.
//
//go:generate go tool bpf2go -cc clang-14 -target bpfel -output-stem pontoon -tags linux -type flow_key -type flow -type service_key -type service -type range_key -type range -type references -type endpoint -type service_work -type affinity_key -type affinity -type endpoint_stats -type fragment_key -type fragment -type next_hop -type station -type station_flag -type lease -type lease_flag -type lease_term -type predecessor -type peer_link -type half_bucket -type control_block -type clock -type find -type find_what -type found_what -type ending -type arrival -type flow_record -type flow_state -type flow_flag -type nat_mode -type algorithm -type record_op -type record_reason -type counter -type service_flag -type vip_flag -type endpoint_flag -type tail -type packet -type trace_step -type trace -type trace_kind -type packet_flag -type answer -cflags "-O2 -g -Wall -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu" pontoon c/pontoon_tc.c
