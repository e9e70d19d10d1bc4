// A Lambda function in Go, for the runtime provided.al2023.
package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

type event struct {
	Name string `json:"name"`
}

type answer struct {
	Message   string `json:"message"`
	RequestID string `json:"request_id"`
	LeftMs    int64  `json:"left_ms"`
}

func handle(ctx context.Context, e event) (answer, error) {
	name := e.Name
	if name == "" {
		name = "world"
	}
	fmt.Println("saying hello to", name)
	if name == "nobody" {
		return answer{}, errors.New("nobody is here")
	}
	call, _ := lambdacontext.FromContext(ctx)
	deadline, _ := ctx.Deadline()
	return answer{"hello, " + name, call.AwsRequestID, time.Until(deadline).Milliseconds()}, nil
}

func main() {
	lambda.Start(handle)
}
