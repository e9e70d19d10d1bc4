// What the Go runtime and its libraries ask of their system; the first argument names the part.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

func main() {
	parts := map[string]func(){
		"http": serve, "preemption": preemption, "collector": collector, "panics": panics, "process": process,
	}
	parts[os.Args[1]]()
}

func check(err error) {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

// A server and its clients, in the clear and with TLS; time-outs; a UNIX socket.
func serve() {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		_, err := io.Copy(hash, r.Body)
		check(err)
		fmt.Fprintf(w, "%s %x", r.Proto, hash.Sum(nil))
	})
	for name, server := range map[string]*httptest.Server{"tls": httptest.NewUnstartedServer(handler)} {
		server.EnableHTTP2 = true
		server.StartTLS()
		ask(name, server.Client(), server.URL)
		server.Close()
	}
	plain := httptest.NewServer(handler)
	ask("plain", plain.Client(), plain.URL)
	plain.Close()

	blocked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	request, err := http.NewRequestWithContext(ctx, "GET", blocked.URL, nil)
	check(err)
	_, err = http.DefaultClient.Do(request)
	fmt.Println("deadline", errors.Is(err, context.DeadlineExceeded))
	cancel()
	blocked.Close()

	listener, err := net.Listen("unix", "/tmp/socket")
	check(err)
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(connection, connection)
				connection.Close()
			}()
		}
	}()
	connection, err := net.Dial("unix", "/tmp/socket")
	check(err)
	_, err = connection.Write([]byte("over a UNIX socket"))
	check(err)
	check(connection.(*net.UnixConn).CloseWrite())
	back, err := io.ReadAll(connection)
	check(err)
	fmt.Println(string(back))
	_, err = net.DialTimeout("tcp", "127.0.0.1:9", time.Second)
	fmt.Println("refused", strings.Contains(err.Error(), "connection refused"))
	_ = tls.VersionTLS13
}

func ask(name string, client *http.Client, address string) {
	var group sync.WaitGroup
	answers := make([]string, 64)
	for n := range answers {
		group.Add(1)
		go func() {
			defer group.Done()
			answer, err := client.Post(address, "text/plain", strings.NewReader(strings.Repeat("x", n*1000)))
			check(err)
			body, err := io.ReadAll(answer.Body)
			check(err)
			answer.Body.Close()
			answers[n] = string(body)
		}()
	}
	group.Wait()
	fmt.Println(name, len(answers), answers[0], answers[63])
}

// Goroutines that never call anything are preempted by SIGURG, also when there are more of them than processors.
func preemption() {
	runtime.GOMAXPROCS(2)
	var stop [4]bool
	for n := range stop {
		go func() {
			for count := 0; ; count++ {
				if count < 0 {
					stop[n] = true
				}
			}
		}()
	}
	for n := 0; n < 20; n++ {
		time.Sleep(time.Millisecond)
		runtime.GC()
	}
	fmt.Println("preempted")
	done := make(chan int)
	for n := 0; n < 2000; n++ {
		go func() { done <- n }()
	}
	sum := 0
	for n := 0; n < 2000; n++ {
		sum += <-done
	}
	fmt.Println("sum", sum)
	ticks := time.NewTicker(2 * time.Millisecond)
	for n := 0; n < 25; n++ {
		<-ticks.C
	}
	fmt.Println("ticked")
}

type node struct {
	next *node
	data [100]byte
}

func collector() {
	debug.SetMemoryLimit(200 << 20)
	var kept []*node
	for round := 0; round < 200; round++ {
		var list *node
		for n := 0; n < 5000; n++ {
			list = &node{next: list}
		}
		if round%50 == 0 {
			kept = append(kept, list)
		}
	}
	length := 0
	for list := kept[1]; list != nil; list = list.next {
		length++
	}
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	fmt.Println("kept", len(kept), length, stats.NumGC > 3)
}

// Faults of the processor become panics.
func panics() {
	attempt := func(name string, act func()) {
		defer func() { fmt.Println(name, recover()) }()
		act()
	}
	var nothing *node
	zero := len(os.Args) - 2
	attempt("null", func() { fmt.Println(nothing.next) })
	attempt("division", func() { fmt.Println(1 / zero) })
	attempt("bounds", func() { fmt.Println(os.Args[zero+100]) })
	debug.SetMaxStack(1 << 20)
	attempt("far", func() {
		debug.SetPanicOnFault(true)
		far := (*[1 << 40]byte)(nil)
		fmt.Println(far[1<<39+zero])
	})
}

func process() {
	err := exec.Command("/bin/true").Run()
	if err == nil {
		fmt.Println("second process made")
	} else {
		fmt.Println("second process refused:", err)
	}
}
