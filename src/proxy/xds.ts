// The room's second door: what Envoy is served. Apart from the first, since gRPC comes with it and Envoy's start need
// not wait for that.
export {type SdsService, startSds} from './sds.ts';
export type {SecretMaterial, SecretSource} from './types.ts';
export {startXdsSocket, type XdsService, type XdsSocketDeps} from './xds-socket.ts';
