#!/bin/sh
# Forms the cluster from the three nodes and declares one service.
set -eu
on() { node=$1; shift; vagrant ssh "$node" -c "sudo $*" 2>/dev/null; }
if on lb1 pontoon status >/dev/null; then exit 0; fi
on lb1 pontoon init >/dev/null
for node in lb2 lb3; do
  token=$(on lb1 pontoon token create | tr -d '\r\n')
  on "$node" pontoon join 192.168.80.11:7400 --token "$token"
done
on lb1 pontoon vip create 192.168.80.200
on lb1 pontoon vip create 10.2.0.1 --kind gateway
on lb1 pontoon service create web --vip 192.168.80.200 --port 80 --protocol tcp --mode fullnat --algorithm rr \
  --endpoint 10.2.0.21:8080 --endpoint 10.2.0.22:8080
on lb1 pontoon status
