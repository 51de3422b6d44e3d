package node

import (
	"context"

	"pontoon/web"
)

// Uses implements web.Backend.
func (d *daemon) Uses(context.Context) ([]web.AddressUse, error) {
	m, err := d.current()
	if err != nil {
		return nil, err
	}
	if m.host == nil {
		return nil, nil // a witness has no links that matter
	}
	uses, err := m.host.Uses()
	if err != nil {
		return nil, err
	}
	out := make([]web.AddressUse, len(uses))
	for i, u := range uses {
		out[i] = web.AddressUse{Prefix: u.Prefix, What: u.What}
	}
	return out, nil
}
