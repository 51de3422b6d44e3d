#!/bin/sh
# A small web server that says who answered, behind the gateway VIP: endpoint.sh NAME
set -eu
name=$1
apt-get update -qq && apt-get install -y -qq nginx-light iperf3
echo "$name" > /var/www/html/index.html
sed -i 's/listen 80 /listen 8080 /; s/listen \[::\]:80 /listen [::]:8080 /' /etc/nginx/sites-enabled/default
systemctl restart nginx
# Replies to clients go back through the load balancer that is master.
ip route replace 192.168.80.0/24 via 10.2.0.1
