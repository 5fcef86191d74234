// Sends the records of stdin with franz-go.
package main

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"
	"stepstream/clients/records"
)

func main() {
	given, ctx := records.Given(), context.Background()
	codec := map[string]kgo.CompressionCodec{
		"none":   kgo.NoCompression(),
		"gzip":   kgo.GzipCompression(),
		"snappy": kgo.SnappyCompression(),
		"lz4":    kgo.Lz4Compression(),
		"zstd":   kgo.ZstdCompression(),
	}[given.Codec]
	options := []kgo.Opt{kgo.SeedBrokers(given.Bootstrap...), kgo.ProducerBatchCompression(codec)}
	if given.Partitioner == "murmur2" {
		options = append(options, kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)))
	}
	if given.End != "plain" {
		options = append(options, kgo.TransactionalID(records.TransactionalID()))
	}
	client, err := kgo.NewClient(options...)
	records.Check(err)
	defer client.Close()
	if given.End != "plain" {
		records.Check(client.BeginTransaction())
	}
	var all []*kgo.Record
	for _, one := range records.Read() {
		record := &kgo.Record{Topic: given.Topic, Key: one.Key, Value: one.Value}
		for _, header := range one.Headers {
			record.Headers = append(record.Headers, kgo.RecordHeader{Key: header.Name, Value: header.Value})
		}
		all = append(all, record)
	}
	records.Check(client.ProduceSync(ctx, all...).FirstErr())
	if given.End != "plain" {
		records.Check(client.EndTransaction(ctx, kgo.TransactionEndTry(given.End == "commit")))
	}
}
