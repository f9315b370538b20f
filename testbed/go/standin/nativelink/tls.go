package main

import (
	"fmt"
	"strings"

	"google.golang.org/grpc"

	"testbed/standin/reapi"
)

// dial prepares a connection to an endpoint. It reads the files of its certificates now, and never again.
func dial(address string, wanted *clientTLS) (*grpc.ClientConn, error) {
	secure := strings.HasPrefix(address, "grpcs://") || strings.HasPrefix(address, "https://")
	switch {
	case secure != (wanted != nil):
		return nil, fmt.Errorf("%s has to be grpcs:// with tls_config, and grpc:// without", address)
	case !secure:
		return reapi.Dial(address)
	case wanted.NativeRoots:
		wanted = &clientTLS{}
	}
	settings, err := reapi.Trust(string(wanted.CA), string(wanted.Certificate), string(wanted.Key))
	if err != nil {
		return nil, err
	}
	return reapi.DialVia(address, "", settings)
}
