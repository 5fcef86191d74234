// Sends each FILE as an event with franz-go, and says where it went: go run clients/franz.go FILE...
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	servers := strings.Split(os.Getenv("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS"), ",")
	topic := cmp.Or(os.Getenv("STEPSTREAM_TOPIC"), "walkthrough.progress.v1")
	// Idempotent, acks=all and Kafka's murmur2 are its defaults.
	client, err := kgo.NewClient(kgo.SeedBrokers(servers...), kgo.DefaultProduceTopic(topic))
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for _, file := range os.Args[1:] {
		value, _ := os.ReadFile(file)
		var event struct {
			User string `json:"mcp_server_user_id"`
		}
		json.Unmarshal(value, &event)
		source := kgo.RecordHeader{Key: "ce_source", Value: []byte("/kit")}
		record := &kgo.Record{Key: []byte(event.User), Value: value, Headers: []kgo.RecordHeader{source}}
		sent, err := client.ProduceSync(context.Background(), record).First()
		if err != nil {
			log.Fatalf("%s: not sent: %v", file, err)
		}
		fmt.Printf("%s: partition %d, offset %d\n", file, sent.Partition, sent.Offset)
	}
}
