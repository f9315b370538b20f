package main

import (
	"net"
	"os"
	"syscall"
)

// nagle accepts connections as the original does. Nagle's algorithm stays on unless the kernel was told otherwise, for
// example by an eBPF program. An answer leaves in two writes, and with the algorithm on the second write waits until
// the first one is acknowledged. Go's own listener turns the algorithm off.
type nagle struct {
	net.Listener
	socket *os.File
}

func leaveNagle(listener *net.TCPListener) (nagle, error) {
	socket, err := listener.File()
	return nagle{listener, socket}, err
}

func (l nagle) Accept() (net.Conn, error) {
	number, _, err := syscall.Accept4(int(l.socket.Fd()), syscall.SOCK_CLOEXEC) // Fd makes this call block
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(number), "connection")
	defer file.Close()
	off, err := syscall.GetsockoptInt(number, syscall.IPPROTO_TCP, syscall.TCP_NODELAY)
	if err != nil {
		return nil, err
	}
	connection, err := net.FileConn(file) // FileConn turns the algorithm off
	if err != nil {
		return nil, err
	}
	accepted := connection.(*net.TCPConn)
	return halves{accepted}, accepted.SetNoDelay(off != 0)
}

// halves is a connection that writes everything in two parts.
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
