// Sends the records of stdin with segmentio/kafka-go.
package main

import (
	"context"
	"time"

	"github.com/segmentio/kafka-go"
	"stepstream/clients/records"
)

func main() {
	given := records.Given()
	if given.End != "plain" {
		records.Lacks("its writer has no transactions")
	}
	writer := &kafka.Writer{
		Addr:         kafka.TCP(given.Bootstrap...),
		Topic:        given.Topic,
		RequiredAcks: kafka.RequireAll,
		BatchTimeout: 100 * time.Millisecond,
		Compression: map[string]kafka.Compression{
			"gzip":   kafka.Gzip,
			"snappy": kafka.Snappy,
			"lz4":    kafka.Lz4,
			"zstd":   kafka.Zstd,
		}[given.Codec],
	}
	if given.Partitioner == "murmur2" {
		writer.Balancer = kafka.Murmur2Balancer{}
	}
	var all []kafka.Message
	for _, one := range records.Read() {
		message := kafka.Message{Key: one.Key, Value: one.Value}
		for _, header := range one.Headers {
			message.Headers = append(message.Headers, kafka.Header{Key: header.Name, Value: header.Value})
		}
		all = append(all, message)
	}
	records.Check(writer.WriteMessages(context.Background(), all...))
	records.Check(writer.Close())
}
