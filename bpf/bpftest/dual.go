package bpftest

// EnableIPv6 switches IPv6 and its forwarding on in the namespace and on interfaces that are there
// already. New addresses are usable at once.
func (n *NS) EnableIPv6(interfaces ...Iface) {
	n.tb.Helper()
	n.Do(func() {
		for _, name := range []string{"default", "all"} {
			n.Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "0")
			n.Sysctl("net/ipv6/conf/"+name+"/accept_dad", "0")
			n.Sysctl("net/ipv6/conf/"+name+"/forwarding", "1")
		}
		for _, i := range interfaces {
			n.Sysctl("net/ipv6/conf/"+i.Name+"/disable_ipv6", "0")
			n.Sysctl("net/ipv6/conf/"+i.Name+"/accept_dad", "0")
			n.Sysctl("net/ipv6/conf/"+i.Name+"/forwarding", "1")
		}
	})
}
