package main

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"

	"testbed/standin/reapi"
)

// dial prepares a connection to an endpoint. It reads the files of its certificates now, and never again. What it
// refuses it refuses in the words of the original.
func dial(address string, wanted *clientTLS) (*grpc.ClientConn, error) {
	secure := strings.HasPrefix(address, "grpcs://") || strings.HasPrefix(address, "https://")
	switch {
	case wanted == nil && secure:
		return nil, fmt.Errorf("The scheme of %s is https or grpcs, but no TLS configuration was provided", address) //nolint:staticcheck // the original's words
	case wanted == nil:
		return reapi.Dial(address)
	case wanted.NativeRoots:
		wanted = &clientTLS{}
	case wanted.CA == "":
		return nil, errors.New("CA certificate must be provided if not using native root certificates")
	case wanted.Certificate != "" && wanted.Key == "":
		return nil, errors.New("Client certificate specified, but no key") //nolint:staticcheck // the same
	case wanted.Certificate == "" && wanted.Key != "":
		return nil, errors.New("Client key specified, but no certificate") //nolint:staticcheck // the same
	}
	settings, err := reapi.Trust(string(wanted.CA), string(wanted.Certificate), string(wanted.Key))
	switch {
	case err != nil:
		return nil, err
	case !secure:
		return nil, fmt.Errorf("You have set TLS configuration on %s, but the scheme is not https or grpcs", address) //nolint:staticcheck // the same
	}
	return reapi.DialVia(address, "", settings)
}
