package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// tool is a build tool that is also a persistent worker, by the JSON protocol of Bazel's persistent workers. It leaves
// a file in the folder where it is started, as tools do. For each request it reports the process that served the
// request, and the value of CONFORMANCE_ENV there: "served by process 17, request 2, environment of-the-pool".
func tool(*servers) error {
	served := 0
	tell := func(arguments []string) string {
		served++
		return fmt.Sprintf("served by process %d, request %d, environment %s, arguments %q",
			os.Getpid(), served, os.Getenv("CONFORMANCE_ENV"), arguments)
	}
	if !slices.Contains(os.Args, "--persistent_worker") {
		fmt.Fprintln(os.Stderr, tell(os.Args[1:]))
		return nil
	}
	if err := os.WriteFile("left-by-the-tool", nil, 0o644); err != nil {
		return err
	}
	requests := json.NewDecoder(bufio.NewReader(os.Stdin))
	answers := json.NewEncoder(os.Stdout)
	for {
		var asked struct {
			Arguments []string `json:"arguments"`
			Request   int      `json:"requestId"`
		}
		if err := requests.Decode(&asked); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		answer := map[string]any{"exitCode": 0, "output": tell(asked.Arguments), "requestId": asked.Request}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
}
