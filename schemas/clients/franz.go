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
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	servers := strings.Split(cmp.Or(os.Getenv("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS"), "127.0.0.1:9092"), ",")
	topic := cmp.Or(os.Getenv("STEPSTREAM_TOPIC"), "walkthrough.progress.v1")
	// Idempotent, acks=all and Kafka's murmur2 are its defaults.
	patience := kgo.RecordDeliveryTimeout(time.Minute) // its default is to try for ever
	client, err := kgo.NewClient(kgo.SeedBrokers(servers...), kgo.DefaultProduceTopic(topic), patience)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for _, file := range os.Args[1:] {
		var event struct {
			User string `json:"mcp_server_user_id"`
		}
		value, err := os.ReadFile(file)
		if err = cmp.Or(err, json.Unmarshal(value, &event)); err != nil {
			log.Fatalf("%s: not sent: %v", file, err)
		}
		source := kgo.RecordHeader{Key: "ce_source", Value: []byte("/kit")}
		record := &kgo.Record{Key: []byte(event.User), Value: value, Headers: []kgo.RecordHeader{source}}
		sent, err := client.ProduceSync(context.Background(), record).First()
		if err != nil {
			log.Fatalf("%s: not sent: %v", file, err)
		}
		fmt.Printf("%s: partition %d, offset %d\n", file, sent.Partition, sent.Offset)
	}
}
