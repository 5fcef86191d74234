import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Sends the records of stdin with Kafka's own client: BOOTSTRAP TOPIC CODEC PARTITIONER plain|commit|abort.
 *
 * <p>A line is a record, its fields in base64 and apart by tabs: key or "-", value, then name and value of
 * each header. Kafka's client brings no JSON, so that is what it is given.
 */
public final class Sender {
  public static void main(String[] arguments) throws Exception {
    Properties settings = new Properties();
    settings.put("bootstrap.servers", arguments[0]);
    settings.put("compression.type", arguments[2]);
    settings.put("linger.ms", "100");
    // PARTITIONER changes nothing: its default is Kafka's rule.
    boolean transaction = !arguments[4].equals("plain");
    if (transaction) {
      settings.put("transactional.id", UUID.randomUUID().toString());
    }
    List<Future<?>> sent = new ArrayList<>();
    ByteArraySerializer bytes = new ByteArraySerializer();
    try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings, bytes, bytes)) {
      if (transaction) {
        producer.initTransactions();
        producer.beginTransaction();
      }
      BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
      for (String line = lines.readLine(); line != null; line = lines.readLine()) {
        sent.add(producer.send(record(arguments[1], line.split("\t"))));
      }
      producer.flush();
      for (Future<?> one : sent) {
        one.get();
      }
      if (transaction && arguments[4].equals("abort")) {
        producer.abortTransaction();
      } else if (transaction) {
        producer.commitTransaction();
      }
    }
  }

  private static ProducerRecord<byte[], byte[]> record(String topic, String[] fields) {
    byte[] key = fields[0].equals("-") ? null : decode(fields[0]);
    ProducerRecord<byte[], byte[]> record = new ProducerRecord<>(topic, key, decode(fields[1]));
    for (int i = 2; i < fields.length; i += 2) {
      record.headers().add(new String(decode(fields[i]), StandardCharsets.UTF_8), decode(fields[i + 1]));
    }
    return record;
  }

  private static byte[] decode(String text) {
    return Base64.getDecoder().decode(text);
  }
}
