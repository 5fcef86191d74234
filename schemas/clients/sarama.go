// Sends each FILE as an event with sarama, and says where it went: go run clients/sarama.go FILE...
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/IBM/sarama"
)

func main() {
	config := sarama.NewConfig()
	config.Producer.Partitioner = sarama.NewMurmur2Partitioner // its default is FNV-1a
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Idempotent = true
	config.Net.MaxOpenRequests = 1          // as its idempotent producer demands
	config.Producer.Return.Successes = true // as its synchronous producer demands
	servers := cmp.Or(os.Getenv("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS"), "127.0.0.1:9092")
	producer, err := sarama.NewSyncProducer(strings.Split(servers, ","), config)
	if err != nil {
		log.Fatal(err)
	}
	defer producer.Close()
	for _, file := range os.Args[1:] {
		var event struct {
			User string `json:"mcp_server_user_id"`
		}
		value, err := os.ReadFile(file)
		if err = cmp.Or(err, json.Unmarshal(value, &event)); err != nil {
			log.Fatalf("%s: not sent: %v", file, err)
		}
		partition, offset, err := producer.SendMessage(&sarama.ProducerMessage{
			Topic:   cmp.Or(os.Getenv("STEPSTREAM_TOPIC"), "walkthrough.progress.v1"),
			Key:     sarama.StringEncoder(event.User),
			Value:   sarama.ByteEncoder(value),
			Headers: []sarama.RecordHeader{{Key: []byte("ce_source"), Value: []byte("/kit")}},
		})
		if err != nil {
			log.Fatalf("%s: not sent: %v", file, err)
		}
		fmt.Printf("%s: partition %d, offset %d\n", file, partition, offset)
	}
}
