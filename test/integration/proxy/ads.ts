import type {ServerDuplexStream} from '@grpc/grpc-js';
import {typeUrl} from '../../../src/proto/types.ts';
import {FieldReader, FieldWriter} from '../../../src/proto/wire.ts';
import type {XdsService} from '../../../src/proxy/xds.ts';

const asIs = (message: Buffer) => message;

export interface TinyAds extends XdsService {
	/** Streams opened so far. */
	streams: number;
}

/** A delta ADS that has these listeners (encoded, by name), no clusters, and keeps silent about everything else. */
export function tinyAds(listeners: Readonly<Record<string, Buffer>> = {}): TinyAds {
	const resources: Record<string, Readonly<Record<string, Buffer>>> = {
		[typeUrl.cluster]: {},
		[typeUrl.listener]: listeners,
	};
	const ads: TinyAds = {
		streams: 0,
		definition: {
			DeltaAggregatedResources: {
				path: '/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources',
				requestStream: true,
				responseStream: true,
				requestSerialize: asIs,
				requestDeserialize: asIs,
				responseSerialize: asIs,
				responseDeserialize: asIs,
			},
		},
		implementation: {
			DeltaAggregatedResources: (call: ServerDuplexStream<Buffer, Buffer>) => {
				ads.streams++;
				let nonce = 0;
				call.on('data', (message: Buffer) => {
					const {type, isAnswer} = parse(message);
					if (!isAnswer && resources[type]) call.write(render(type, resources[type], String(++nonce)));
				});
				call.on('end', () => call.end());
				call.on('error', () => {});
			},
		},
	};
	return ads;
}

function parse(message: Buffer): {type: string; isAnswer: boolean} {
	let type = '';
	let isAnswer = false;
	for (const field = new FieldReader(message); field.next(); ) {
		if (field.number === 2) type = field.string();
		else if (field.number === 6) isAnswer = true;
	}
	return {type, isAnswer};
}

function render(type: string, resources: Readonly<Record<string, Buffer>>, nonce: string): Buffer {
	const writer = new FieldWriter();
	for (const [name, bytes] of Object.entries(resources)) {
		writer.message(2, resource =>
			resource
				.string(1, '1')
				.message(2, any => any.string(1, type).bytes(2, bytes))
				.string(3, name),
		);
	}
	return writer.string(4, type).string(5, nonce).finish();
}

/**
 * A listener that ends TLS with the secret `default` over SDS from `sds-grpc`, as istiod asks for it, and sends
 * back what it is sent. Encoded by hand; field numbers from envoy/config/listener/v3 and extensions/transport_sockets/tls/v3.
 */
export function tlsListener(name: string, port: number): Buffer {
	const any = (url: string, value: FieldWriter) => (writer: FieldWriter) =>
		writer.string(1, `type.googleapis.com/${url}`).bytes(2, value.finish());
	const sdsConfig = new FieldWriter()
		.message(2, source =>
			source
				.uint(1, 2) // api_type GRPC
				.uint(8, 2) // transport_api_version V3
				.message(4, service => service.message(1, grpc => grpc.string(1, 'sds-grpc')))
				.bool(7, true),
		)
		.message(4, () => {}) // initial_fetch_timeout 0s
		.uint(6, 2); // resource_api_version V3
	const tls = new FieldWriter().message(1, common =>
		common.message(6, secret => secret.string(1, 'default').append(2, sdsConfig)),
	);
	return new FieldWriter()
		.string(1, name)
		.message(2, address => address.message(1, socket => socket.string(2, '127.0.0.1').uint(3, port)))
		.message(3, chain =>
			chain
				.message(3, filter =>
					filter
						.string(1, 'envoy.filters.network.echo')
						.message(4, any('envoy.extensions.filters.network.echo.v3.Echo', new FieldWriter())),
				)
				.message(6, socket =>
					socket
						.string(1, 'envoy.transport_sockets.tls')
						.message(3, any('envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext', tls)),
				),
		)
		.finish();
}
