package transport

import "crypto/tls"

// TLSCertificate returns the node's certificate with its key, for a TLS server
// of the product outside the cluster port (the HTTP API). The caller must not
// write the key anywhere.
func (id *Identity) TLSCertificate() tls.Certificate { return id.tlsCertificate() }
