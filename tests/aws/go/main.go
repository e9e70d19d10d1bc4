// A function that does what functions in Go do, well and badly.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"

	"github.com/aws/aws-lambda-go/lambda"
)

type event struct {
	Do string `json:"do"`
}

func handle(ctx context.Context, e event) (any, error) {
	switch e.Do {
	case "fine":
		return "fine", nil
	case "goroutines":
		return goroutines()
	case "deadline":
		return deadline(ctx)
	case "error":
		return nil, fmt.Errorf("outer: %w", errors.New("inner"))
	case "panic":
		panic("all is lost")
	case "nil":
		var p *event
		return p.Do, nil
	case "exit":
		os.Exit(7)
	case "deadlock":
		select {}
	case "random":
		bytes := make([]byte, 16)
		rand.Read(bytes)
		return map[string]any{"crypto": hex.EncodeToString(bytes)}, nil
	}
	return nil, fmt.Errorf("nothing is called %q", e.Do)
}

// goroutines has many of them add up, a server and its clients talk, and one that never yields be preempted.
func goroutines() (any, error) {
	var sum atomic.Int64
	var group sync.WaitGroup
	for n := range 1000 {
		group.Add(1)
		go func() {
			defer group.Done()
			sum.Add(int64(n) * int64(n))
		}()
	}
	group.Wait()

	served, err := serve(50)
	if err != nil {
		return nil, err
	}

	// Only a signal can take the processor away from this loop.
	var stop atomic.Bool
	spinning := make(chan bool)
	go func() {
		close(spinning)
		for !stop.Load() {
		}
	}()
	<-spinning
	stop.Store(true)
	return map[string]any{"sum": sum.Load(), "served": served, "preempted": true}, nil
}

func serve(requests int) (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, mathrand.Int())
	})}
	go server.Serve(listener)
	defer server.Close()
	var served atomic.Int64
	var group sync.WaitGroup
	for range requests {
		group.Add(1)
		go func() {
			defer group.Done()
			response, err := http.Get("http://" + listener.Addr().String())
			if err != nil {
				return
			}
			defer response.Body.Close()
			if body, err := io.ReadAll(response.Body); err == nil && len(body) > 0 {
				served.Add(1)
			}
		}()
	}
	group.Wait()
	return int(served.Load()), nil
}

// deadline waits for what the platform allows, with a second to spare for the answer.
func deadline(ctx context.Context) (any, error) {
	at, ok := ctx.Deadline()
	if !ok {
		return nil, errors.New("there is no deadline")
	}
	earlier, cancel := context.WithDeadline(context.Background(), at.Add(-4_000_000_000))
	defer cancel()
	<-earlier.Done()
	return earlier.Err().Error(), nil
}

func main() {
	lambda.Start(handle)
}
