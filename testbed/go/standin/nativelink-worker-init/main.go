// Command nativelink-worker-init copies /bin/nativelink to the path that is its only argument. It also copies the
// schema that the stand-in needs beside its binary.
package main

import (
	"errors"
	"fmt"
	"os"
)

func copyFile(from, to string, mode os.FileMode) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, mode)
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: nativelink-worker-init PATH")
		os.Exit(2)
	}
	err := errors.Join(
		copyFile("/bin/nativelink.schema.json", os.Args[1]+".schema.json", 0o644),
		copyFile("/bin/nativelink", os.Args[1], 0o755),
	)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
