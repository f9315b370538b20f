package main

import (
	"net"
	"os"
	"syscall"
)

// nagle accepts connections as the original does: Nagle's algorithm stays on unless the kernel was told otherwise (an eBPF
// program can), and an answer leaves in two writes, the second of which then waits until the first is acknowledged.
// Go's own listener turns the algorithm off.
type nagle struct {
	net.Listener
	socket *os.File
}

func leaveNagle(listener *net.TCPListener) (nagle, error) {
	socket, err := listener.File()
	return nagle{listener, socket}, err
}

func (l nagle) Accept() (net.Conn, error) {
	number, _, err := syscall.Accept4(int(l.socket.Fd()), syscall.SOCK_CLOEXEC) // which waits: Fd made the socket block
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(number), "connection")
	defer file.Close()
	off, err := syscall.GetsockoptInt(number, syscall.IPPROTO_TCP, syscall.TCP_NODELAY)
	if err != nil {
		return nil, err
	}
	connection, err := net.FileConn(file) // which turns the algorithm off
	if err != nil {
		return nil, err
	}
	accepted := connection.(*net.TCPConn)
	return halves{accepted}, accepted.SetNoDelay(off != 0)
}

// halves writes in two parts.
type halves struct{ *net.TCPConn }

func (c halves) Write(content []byte) (int, error) {
	half := len(content) / 2
	written, err := c.TCPConn.Write(content[:half])
	if err != nil {
		return written, err
	}
	rest, err := c.TCPConn.Write(content[half:])
	return written + rest, err
}
