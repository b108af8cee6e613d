export {type Rejection, type Relay, type RelayDeps, type RelayStatus, startRelay} from './relay.ts';
export type {Removal} from './rewrite.ts';
export type {HealthReport, UpstreamState, UpstreamStatus} from './upstream.ts';
