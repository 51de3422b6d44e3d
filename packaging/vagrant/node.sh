#!/bin/sh
# Installs the binary and starts the daemon: node.sh NAME LAST-BYTE
set -eu
name=$1 last=$2
client=$(ip -o -4 addr show to "192.168.80.$last/24" | awk '{print $2}')
endpoint=$(ip -o -4 addr show to "10.2.0.$last/24" | awk '{print $2}')
install -m 0755 /tmp/pontoon /usr/bin/pontoon
install -m 0644 /tmp/pontoon.service /etc/systemd/system/pontoon.service
install -d /etc/pontoon
cat > /etc/pontoon/node.yaml <<YAML
name: $name
cluster:
  address: 192.168.80.$last:7400
data_plane:
  interfaces: [$client, $endpoint]
  max_flows: 262144
YAML
systemctl daemon-reload
systemctl enable --now pontoon
