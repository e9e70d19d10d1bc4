import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.stream.LongStream;

/** What a Java virtual machine asks of its system; the first argument names the part. */
public class Programs {
    static class Node {
        Node next;
        int[] payload = new int[64];
    }

    /** Hot code that is compiled, loses its assumptions and is compiled again. */
    static void jit() {
        long sum = 0;
        Object[] kinds = {1, 2L, "three", 4.0, 'c'};
        for (int round = 0; round < 3_000_000; round++) {
            Object kind = kinds[round % (round > 2_000_000 ? 5 : 2)];
            sum += kind instanceof Integer i ? i : kind instanceof Long l ? l : kind.toString().length();
        }
        System.out.println("sum " + sum);
        System.out.println("parallel " + LongStream.range(0, 5_000_000).parallel().filter(n -> n % 7 == 3).sum());
    }

    /** Much garbage beside data that stays, with little room. */
    static void collector() {
        List<Node> kept = new ArrayList<>();
        long made = 0;
        for (int round = 0; round < 400; round++) {
            Node head = null;
            for (int n = 0; n < 2_000; n++) {
                Node node = new Node();
                node.next = head;
                head = node;
                made++;
            }
            if (round % 20 == 0) kept.add(head);
        }
        int length = 0;
        for (Node node = kept.get(7); node != null; node = node.next) length++;
        System.out.println("made " + made + ", kept " + kept.size() + " lists of " + length);
        try {
            List<long[]> hoard = new ArrayList<>();
            while (true) hoard.add(new long[1 << 20]);
        } catch (OutOfMemoryError error) {
            System.out.println("out of memory, and on");
        }
    }

    static int lengthOf(String text) {
        return text.length();
    }

    static int depth(int n) {
        return depth(n + 1) + 1;
    }

    /** Null dereferences are found by SIGSEGV in compiled code, deep recursion by guard pages. */
    static void faults() {
        int caught = 0;
        for (int n = 0; n < 200_000; n++) {
            try {
                caught += lengthOf(n % 1000 == 999 ? null : "text") - 4;
            } catch (NullPointerException error) {
                caught++;
            }
        }
        System.out.println("null pointers " + caught);
        int overflows = 0;
        for (int n = 0; n < 3; n++) {
            try {
                depth(0);
            } catch (StackOverflowError error) {
                overflows++;
            }
        }
        System.out.println("overflows " + overflows);
        try {
            System.out.println(7 / (caught - caught));
        } catch (ArithmeticException error) {
            System.out.println(error.getMessage());
        }
    }

    static void threads() throws Exception {
        AtomicLong total = new AtomicLong();
        Object monitor = new Object();
        long[] guarded = {0};
        CyclicBarrier barrier = new CyclicBarrier(12);
        List<Thread> all = new ArrayList<>();
        for (int number = 0; number < 12; number++) {
            Thread thread = new Thread(() -> {
                try {
                    barrier.await(30, TimeUnit.SECONDS);
                } catch (Exception error) {
                    throw new IllegalStateException(error);
                }
                for (int n = 0; n < 20_000; n++) {
                    total.incrementAndGet();
                    synchronized (monitor) {
                        guarded[0]++;
                    }
                }
            });
            all.add(thread);
            thread.start();
        }
        for (Thread thread : all) thread.join();
        System.out.println("total " + total + " guarded " + guarded[0]);
        var pool = Executors.newFixedThreadPool(8);
        var seen = new ConcurrentHashMap<Integer, Integer>();
        var futures = new ArrayList<CompletableFuture<Void>>();
        for (int n = 0; n < 500; n++) {
            int number = n;
            futures.add(CompletableFuture.runAsync(() -> seen.merge(number % 10, 1, Integer::sum), pool));
        }
        CompletableFuture.allOf(futures.toArray(CompletableFuture[]::new)).get(60, TimeUnit.SECONDS);
        pool.shutdown();
        System.out.println("pool " + pool.awaitTermination(30, TimeUnit.SECONDS) + " " + seen);
        Thread sleeper = new Thread(() -> {
            try {
                Thread.sleep(600_000);
            } catch (InterruptedException error) {
                System.out.println("interrupted");
            }
        });
        sleeper.start();
        sleeper.interrupt();
        sleeper.join();
    }

    static void http() throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            byte[] body = exchange.getRequestBody().readAllBytes();
            try {
                String hash = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(body));
                exchange.sendResponseHeaders(200, hash.length());
                exchange.getResponseBody().write(hash.getBytes());
            } catch (Exception error) {
                throw new IllegalStateException(error);
            } finally {
                exchange.close();
            }
        });
        server.start();
        HttpClient client = HttpClient.newHttpClient();
        URI address = URI.create("http://127.0.0.1:" + server.getAddress().getPort() + "/");
        for (int bytes : new int[] {1, 10_000, 2_000_000}) {
            byte[] body = new byte[bytes];
            var request = HttpRequest.newBuilder(address).POST(HttpRequest.BodyPublishers.ofByteArray(body)).build();
            var answer = client.send(request, BodyHandlers.ofString());
            String hash = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(body));
            System.out.println("http " + bytes + " " + answer.statusCode() + " " + hash.equals(answer.body()));
        }
        var together = new ArrayList<CompletableFuture<Integer>>();
        for (int n = 0; n < 40; n++) {
            var request = HttpRequest.newBuilder(address).build();
            together.add(client.sendAsync(request, BodyHandlers.ofString()).thenApply(answer -> answer.statusCode()));
        }
        long good = 0;
        for (var answer : together) good += answer.get(60, TimeUnit.SECONDS) == 200 ? 1 : 0;
        System.out.println("together " + good);
        Path file = Files.createTempFile("gust", "");
        try (var channel = FileChannel.open(file, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            channel.write(ByteBuffer.wrap(new byte[100_000]));
            var mapped = channel.map(FileChannel.MapMode.READ_ONLY, 0, 100_000);
            System.out.println("mapped " + mapped.remaining());
        }
        server.stop(0);
        System.exit(0);
    }

    static void process() {
        try {
            int status = new ProcessBuilder("/bin/true").start().waitFor();
            System.out.println("second process ended with " + status);
        } catch (Exception error) {
            System.out.println("second process refused: " + error.getClass().getName());
        }
    }

    public static void main(String[] arguments) throws Exception {
        switch (arguments[0]) {
            case "jit" -> jit();
            case "collector" -> collector();
            case "faults" -> faults();
            case "threads" -> threads();
            case "http" -> http();
            case "process" -> process();
            default -> throw new IllegalArgumentException(arguments[0]);
        }
    }
}
