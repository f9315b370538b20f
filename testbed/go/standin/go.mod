module testbed/standin

go 1.26.0

tool (
	testbed/standin/nativelink
	testbed/standin/nativelink-worker-init
	testbed/standin/pause
)

require (
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3
	github.com/titanous/json5 v1.0.0
)

require golang.org/x/text v0.14.0 // indirect
