// Sends the records of stdin with sarama.
package main

import (
	"errors"

	"github.com/IBM/sarama"
	"stepstream/clients/records"
)

func main() {
	given := records.Given()
	config := sarama.NewConfig()
	config.Producer.Return.Successes = true // as its synchronous producer demands
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Compression = map[string]sarama.CompressionCodec{
		"none":   sarama.CompressionNone,
		"gzip":   sarama.CompressionGZIP,
		"snappy": sarama.CompressionSnappy,
		"lz4":    sarama.CompressionLZ4,
		"zstd":   sarama.CompressionZSTD,
	}[given.Codec]
	if given.Partitioner == "murmur2" {
		config.Producer.Partitioner = sarama.NewMurmur2Partitioner
	}
	if given.End != "plain" {
		config.Producer.Transaction.ID = records.TransactionalID()
		config.Producer.Idempotent = true
		config.Net.MaxOpenRequests = 1 // an idempotent producer of sarama demands it
	}
	producer, err := sarama.NewSyncProducer(given.Bootstrap, config)
	records.Check(err)
	if given.End != "plain" {
		records.Check(producer.BeginTxn())
	}
	var all []*sarama.ProducerMessage
	for _, one := range records.Read() {
		message := &sarama.ProducerMessage{Topic: given.Topic, Value: sarama.ByteEncoder(one.Value)}
		if one.Key != nil {
			message.Key = sarama.ByteEncoder(one.Key)
		}
		for _, header := range one.Headers {
			message.Headers = append(message.Headers, sarama.RecordHeader{Key: []byte(header.Name), Value: header.Value})
		}
		all = append(all, message)
	}
	var refused sarama.ProducerErrors
	if err := producer.SendMessages(all); errors.As(err, &refused) {
		records.Check(refused[0].Err)
	} else {
		records.Check(err)
	}
	if given.End == "commit" {
		records.Check(producer.CommitTxn())
	}
	if given.End == "abort" {
		records.Check(producer.AbortTxn())
	}
	records.Check(producer.Close())
}
