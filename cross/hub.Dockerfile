# The hub in an image of nothing else: cross/build.sh -t all, then from the repository's root
#   docker build -f cross/hub.Dockerfile --build-arg TARGET=x86_64-unknown-linux-musl -t dunlin-hub target/dist
FROM scratch
ARG TARGET=x86_64-unknown-linux-musl
COPY ${TARGET}/dunlin-hub ${TARGET}/dunlin /
USER 65532:65532
ENV DUNLIN_HUB_DATA=/data DUNLIN_TOKEN_FILE=/data/owner.token
VOLUME /data
EXPOSE 7443/udp
# No shell here: the hub's own client asks it, with the owner's token.
HEALTHCHECK --interval=30s --timeout=5s CMD ["/dunlin", "nodes"]
ENTRYPOINT ["/dunlin-hub"]
CMD ["serve"]
