// Sends each FILE as an event with segmentio/kafka-go, and says where it went: go run clients/segmentio.go FILE...
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/segmentio/kafka-go"
)

func main() {
	servers := cmp.Or(os.Getenv("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS"), "127.0.0.1:9092")
	var sent []kafka.Message
	writer := &kafka.Writer{
		Addr:         kafka.TCP(strings.Split(servers, ",")...),
		Topic:        cmp.Or(os.Getenv("STEPSTREAM_TOPIC"), "walkthrough.progress.v1"),
		Balancer:     kafka.Murmur2Balancer{}, // its default is round robin, whatever the key
		RequiredAcks: kafka.RequireAll,        // it has no idempotence: what it sends again counts once all the same
		BatchSize:    1,
		Completion:   func(messages []kafka.Message, err error) { sent = messages },
	}
	defer writer.Close()
	for _, file := range os.Args[1:] {
		var event struct {
			User string `json:"mcp_server_user_id"`
		}
		value, err := os.ReadFile(file)
		if err = cmp.Or(err, json.Unmarshal(value, &event)); err != nil {
			log.Fatalf("%s: not sent: %v", file, err)
		}
		source := kafka.Header{Key: "ce_source", Value: []byte("/kit")}
		message := kafka.Message{Key: []byte(event.User), Value: value, Headers: []kafka.Header{source}}
		if err := writer.WriteMessages(context.Background(), message); err != nil {
			log.Fatalf("%s: not sent: %v", file, err)
		}
		fmt.Printf("%s: partition %d, offset %d\n", file, sent[0].Partition, sent[0].Offset)
	}
}
