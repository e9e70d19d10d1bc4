/* A static bootstrap for provided runtimes without any library: speaks the Lambda Runtime API over one socket, and
 * answers each event with itself. */

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

static char in[1 << 20], out[1 << 20];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* Sends a request on a connection of its own and reads the whole answer. Returns its length. */
static size_t exchange(const struct sockaddr_in *to, const char *request, size_t length) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)to, sizeof *to) < 0) fail("connect");
    for (size_t sent = 0; sent < length;) {
        ssize_t more = write(fd, request + sent, length - sent);
        if (more <= 0) fail("write");
        sent += more;
    }
    size_t got = 0;
    for (ssize_t more; got < sizeof in - 1; got += more) {
        more = read(fd, in + got, sizeof in - 1 - got);
        if (more < 0) fail("read");
        if (more == 0) break;
        /* The head says how long the body is; the other end may keep the connection. */
        in[got + more] = 0;
        char *end = strstr(in, "\r\n\r\n"), *line = strcasestr(in, "\r\ncontent-length:");
        if (end && line && got + more >= (size_t)(end + 4 - in) + atol(line + 17)) {
            got += more;
            break;
        }
    }
    in[got] = 0;
    close(fd);
    return got;
}

int main(void) {
    char host[64], id[128];
    struct sockaddr_in to = {.sin_family = AF_INET};
    const char *api = getenv("AWS_LAMBDA_RUNTIME_API");
    if (!api || strlen(api) >= sizeof host) fail("AWS_LAMBDA_RUNTIME_API");
    strcpy(host, api);
    char *colon = strchr(host, ':');
    if (colon) *colon = 0;
    to.sin_port = htons(colon ? atoi(colon + 1) : 80);
    if (inet_pton(AF_INET, host, &to.sin_addr) != 1) fail("address");
    for (;;) {
        int length = snprintf(out, sizeof out,
            "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", api);
        size_t got = exchange(&to, out, length);
        char *body = strstr(in, "\r\n\r\n"), *header = strcasestr(in, "\r\nlambda-runtime-aws-request-id:");
        if (!body || !header || sscanf(header + 32, " %127[^\r\n]", id) != 1) {
            fprintf(stderr, "an answer that makes no sense: %s\n", in);
            return 1;
        }
        body += 4;
        size_t body_length = got - (body - in);
        printf("event of %zu bytes\n", body_length);
        fflush(stdout);
        length = snprintf(out, sizeof out,
            "POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n"
            "Content-Length: %zu\r\n\r\n", id, api, body_length);
        memcpy(out + length, body, body_length);
        exchange(&to, out, length + body_length);
    }
}
