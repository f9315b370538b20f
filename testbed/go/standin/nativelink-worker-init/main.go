// Command nativelink-worker-init copies /bin/nativelink to the path that is its only argument.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: nativelink-worker-init PATH")
		os.Exit(2)
	}
	binary, err := os.ReadFile("/bin/nativelink")
	if err == nil {
		err = os.WriteFile(os.Args[1], binary, 0o755)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
