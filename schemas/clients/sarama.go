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
	producer, err := sarama.NewSyncProducer(strings.Split(os.Getenv("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS"), ","), config)
	if err != nil {
		log.Fatal(err)
	}
	defer producer.Close()
	for _, file := range os.Args[1:] {
		value, _ := os.ReadFile(file)
		var event struct {
			User string `json:"mcp_server_user_id"`
		}
		json.Unmarshal(value, &event)
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
