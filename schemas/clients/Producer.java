import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.regex.Pattern;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.StringSerializer;

/** Sends each FILE as an event with Kafka's own client: java -cp 'jars/*' clients/Producer.java FILE... */
public class Producer {
  public static void main(String[] files) throws Exception {
    Map<String, String> env = System.getenv();
    String topic = env.getOrDefault("STEPSTREAM_TOPIC", "walkthrough.progress.v1");
    String servers = env.getOrDefault("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092");
    // The partitioner is Kafka's murmur2: there is nothing to set.
    Map<String, Object> settings =
        Map.of("bootstrap.servers", servers, "enable.idempotence", true, "acks", "all");
    // Your own program has the user at hand, or a JSON library.
    Pattern user = Pattern.compile("\"mcp_server_user_id\"\\s*:\\s*\"([^\"]+)\"");
    StringSerializer text = new StringSerializer();
    try (KafkaProducer<String, String> producer = new KafkaProducer<>(settings, text, text)) {
      for (String file : files) {
        try {
          String value = Files.readString(Path.of(file));
          if (!value.strip().startsWith("{")) throw new IOException("it is no JSON object");
          String key = user.matcher(value).results().map(found -> found.group(1)).findFirst().orElse(null);
          ProducerRecord<String, String> record = new ProducerRecord<>(topic, key, value);
          record.headers().add("ce_source", "/kit".getBytes(StandardCharsets.UTF_8));
          RecordMetadata sent = producer.send(record).get();
          System.out.printf("%s: partition %d, offset %d%n", file, sent.partition(), sent.offset());
        } catch (IOException | ExecutionException refused) {
          Throwable why = refused.getCause() == null ? refused : refused.getCause();
          System.out.printf("%s: not sent: %s%n", file, why);
          System.exit(1);
        }
      }
    }
  }
}
