package backend

import (
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"strconv"
)

// What a server says of a service: the numbers of grpc.health.v1's
// HealthCheckResponse.ServingStatus.
const (
	grpcServing    = 1
	grpcNotServing = 2
)

// Status codes of gRPC.
const (
	grpcOK            = 0
	grpcInvalid       = 3
	grpcNotFound      = 5
	grpcUnimplemented = 12
)

// grpcCheck is the one method that is served.
const grpcCheck = "/grpc.health.v1.Health/Check"

// answerGRPC is grpc.health.v1.Health/Check ("gRPC over HTTP2" and "GRPC Health
// Checking Protocol" of the gRPC project). Its two messages have one field each,
// so they are read and written by hand.
func (s *Server) answerGRPC(w http.ResponseWriter, r *http.Request) {
	if err := s.dawdle(r.Context()); err != nil {
		return
	}
	w.Header().Set("Content-Type", "application/grpc")
	code := grpcOK
	name, err := readCheck(r.Body)
	switch {
	case r.URL.Path != grpcCheck:
		code = grpcUnimplemented
	case err != nil:
		code = grpcInvalid
	case name != "" && name != s.cfg.GRPCService:
		code = grpcNotFound
	}
	w.WriteHeader(http.StatusOK)
	if code == grpcOK {
		status := byte(grpcServing)
		if s.fails() {
			status = grpcNotServing
		} else {
			s.requests.Add(1)
		}
		// Not compressed, two bytes: field 1, a varint.
		_, _ = w.Write([]byte{0, 0, 0, 0, 2, 1 << 3, status}) // who went away needs no answer
	}
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", strconv.Itoa(code))
}

// readCheck reads a HealthCheckRequest with its prefix: field 1 is the name of
// the service, and absent when that is empty.
func readCheck(r io.Reader) (service string, err error) {
	const most = 1024
	var prefix [5]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return "", err
	}
	n := binary.BigEndian.Uint32(prefix[1:])
	if prefix[0] != 0 || n > most {
		return "", errors.New("compressed, or too long")
	}
	m := make([]byte, n)
	if _, err := io.ReadFull(r, m); err != nil {
		return "", err
	}
	if n == 0 {
		return "", nil
	}
	length, used := binary.Uvarint(m[1:])
	if m[0] != 1<<3|2 || used <= 0 || length != uint64(len(m)-1-used) {
		return "", errors.New("not one string in field 1")
	}
	return string(m[1+used:]), nil
}
