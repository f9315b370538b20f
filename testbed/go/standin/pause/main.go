// Command pause holds the namespaces of a pod until it is told to end. Where it is the first process of all containers,
// it also collects the processes that no other process waits for.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end, orphan := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM)
	signal.Notify(orphan, syscall.SIGCHLD)
	for {
		select {
		case <-end:
			return
		case <-orphan:
			for ended := 1; ended > 0; {
				ended, _ = syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			}
		}
	}
}
